//go:build !linux

package account

import "os"

// CheckSwitch returns why this process cannot start a command as another user and then end it.
func CheckSwitch() error {
	if os.Geteuid() != 0 {
		return errNotRoot
	}
	return nil
}
