//go:build !linux && !darwin && !dragonfly && !freebsd && !netbsd && !openbsd

package boot

// ID is empty: this system does not provide an identifier.
func ID() string { return "" }
