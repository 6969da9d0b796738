package boot

import (
	"os"
	"strings"
)

// ID is the same from one start of the machine to the next, and never again. It is empty where the system does
// not tell.
func ID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}
