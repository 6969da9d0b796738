//go:build !race

package testenv

// EndProcessesAtOnce does nothing without the race detector.
func EndProcessesAtOnce() {}
