package boot

import (
	"os"
	"strings"
)

// ID returns an identifier of the current start of the machine, which no other start has. It is empty if the system
// does not provide one.
func ID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}
