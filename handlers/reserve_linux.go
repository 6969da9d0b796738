package handlers

import "golang.org/x/sys/unix"

// reserveMemory returns memory outside of the heap. Only the pages that are written to take physical memory. Huge
// pages are off for it, because the kernel could merge pages into them.
func reserveMemory(size int64) ([]byte, error) {
	const flags = unix.MAP_ANON | unix.MAP_PRIVATE | unix.MAP_NORESERVE
	region, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, flags)
	if err == nil {
		_ = unix.Madvise(region, unix.MADV_NOHUGEPAGE) // fails if the kernel has no huge pages
	}
	return region, err
}
