//go:build darwin || freebsd

package rundir

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// mountsIn returns the mount points at name and below it.
func mountsIn(root *os.Root, name string) ([]string, error) {
	dir, err := filepath.EvalSymlinks(root.Name())
	if err != nil {
		return nil, err
	}
	n, err := unix.Getfsstat(nil, unix.MNT_NOWAIT)
	if err != nil {
		return nil, err
	}
	const more = 16 // mounts may be added between the two calls
	list := make([]unix.Statfs_t, n+more)
	if n, err = unix.Getfsstat(list, unix.MNT_NOWAIT); err != nil {
		return nil, err
	}
	var points []string
	for _, m := range list[:n] {
		points = append(points, unix.ByteSliceToString(m.Mntonname[:]))
	}
	return pointsUnder(filepath.Join(dir, name), points), nil
}
