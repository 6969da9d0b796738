package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// errMounted says that something is mounted in a folder that is to go. A removal
// stops at links, but at no mount: what a command bound there lives elsewhere too.
var errMounted = errors.New("something is mounted there, and stays until it is unmounted")

// removeAll removes what a command may have left: root.RemoveAll, but not through
// mounts, and with the folders that are read-only, as Go's caches of modules are.
func removeAll(root *os.Root, name string) error {
	if err := root.Remove(name); err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil // most commands leave nothing, and no mount point goes this way
	}
	mounts, err := mountsIn(root, name)
	if err != nil {
		return fmt.Errorf("looking for mounts: %w", err)
	}
	if len(mounts) > 0 {
		return fmt.Errorf("%w: %s", errMounted, strings.Join(mounts, ", "))
	}
	if err = root.RemoveAll(name); !errors.Is(err, fs.ErrPermission) {
		return err
	}
	unlock(root, name)
	return root.RemoveAll(name)
}

// unlock lets the owner change a folder and those in it, but nothing that a link
// leads to. What stays locked the removal will tell.
func unlock(root *os.Root, name string) {
	const all = 0o700
	info, err := root.Lstat(name)
	if err != nil || !info.IsDir() {
		return
	}
	if mode := info.Mode().Perm(); mode&all != all {
		_ = root.Chmod(name, mode|all)
	}
	d, err := root.Open(name)
	if err != nil {
		return
	}
	entries, _ := d.ReadDir(-1)
	_ = d.Close() // only read
	for _, e := range entries {
		if e.IsDir() {
			unlock(root, filepath.Join(name, e.Name()))
		}
	}
}

// under returns those of points that are at folder or below.
func under(folder string, points []string) (in []string) {
	for _, point := range points {
		if rest, ok := strings.CutPrefix(point, folder); ok && (rest == "" || rest[0] == filepath.Separator) {
			in = append(in, point)
		}
	}
	return in
}
