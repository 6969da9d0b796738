//go:build !linux

package handlers

import "golang.org/x/sys/unix"

// reserveMemory returns memory outside of the heap. Only the pages that are written to take physical memory.
func reserveMemory(size int64) ([]byte, error) {
	return unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
}
