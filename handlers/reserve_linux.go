package handlers

import "golang.org/x/sys/unix"

// reserveMemory returns memory outside of the heap, of which only what is written to takes
// any: by pages, and not by the huge pages that the kernel may put together.
func reserveMemory(size int64) ([]byte, error) {
	const flags = unix.MAP_ANON | unix.MAP_PRIVATE | unix.MAP_NORESERVE
	region, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, flags)
	if err == nil {
		_ = unix.Madvise(region, unix.MADV_NOHUGEPAGE) // fails where the kernel has none
	}
	return region, err
}
