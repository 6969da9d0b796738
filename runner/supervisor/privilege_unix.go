//go:build unix && !linux

package supervisor

import "os"

// HideMemory does nothing on this system.
func HideMemory() error { return nil }

func withoutCapabilities(start func() (*os.Process, error)) (*os.Process, error) { return start() }
