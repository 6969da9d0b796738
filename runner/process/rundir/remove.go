package rundir

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// errMounted says that something is mounted in a folder that is to be removed. A removal does not follow links, but
// it does follow mounts: a file that a command mounted there is in another place too.
var errMounted = errors.New("something is mounted there, and stays until it is unmounted")

// removeAll removes everything that a command may have left, including folders that are read-only, as Go's module
// caches are, and folders that are nested deeply. It does not remove anything through mounts.
func removeAll(root *os.Root, name string) error {
	if err := root.Remove(name); err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil // most commands leave nothing; a mount point cannot be removed this way
	}
	mounts, err := mountsIn(root, name)
	if err != nil {
		return fmt.Errorf("looking for mounts: %w", err)
	}
	if len(mounts) > 0 {
		return fmt.Errorf("%w: %s", errMounted, strings.Join(mounts, ", "))
	}
	return removeTree(root, name)
}

const (
	// openFolders is how many nested folders are open at the same time during a removal. A folder that is deeper is
	// moved up first: a command can nest any number of folders, and each open one takes a descriptor.
	openFolders = 32
	listBatch   = 1024
)

// removeTree removes a folder, including read-only folders in it.
func removeTree(root *os.Root, name string) error {
	t := &treeRemoval{root: root, top: name}
	t.noteError(t.removeFolder(root, name, name, 1))
	return t.err
}

type treeRemoval struct {
	root *os.Root
	top  string // the path of the tree in root
	err  error  // the first error
}

func (t *treeRemoval) noteError(err error) {
	if t.err == nil && err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.err = err
	}
}

// removeFolder removes the folder name of parent. In the root, its path is path.
func (t *treeRemoval) removeFolder(parent *os.Root, name, path string, depth int) error {
	if err := makeWritable(parent, name); err != nil {
		return err
	}
	folder, err := parent.OpenRoot(name)
	if err != nil {
		return err
	}
	for removed := true; removed; {
		removed = t.removeEntries(folder, path, depth)
	}
	_ = folder.Close() // only read
	return parent.Remove(name)
}

// removeEntries removes some of the entries of a folder, and reports whether it could remove any: an entry that
// cannot be removed does not stop the removal of the others.
func (t *treeRemoval) removeEntries(folder *os.Root, path string, depth int) (removed bool) {
	d, err := folder.Open(".")
	if err != nil {
		t.noteError(err)
		return false
	}
	entries, err := d.ReadDir(listBatch)
	_ = d.Close() // only read
	if err != nil {
		if !errors.Is(err, io.EOF) {
			t.noteError(err)
		}
		return false
	}
	for _, e := range entries {
		err := folder.Remove(e.Name()) // works for a file, a link and an empty folder
		if err != nil && e.IsDir() {
			err = t.removeOrMove(folder, e.Name(), filepath.Join(path, e.Name()), depth)
		}
		if err != nil {
			t.noteError(err)
			continue
		}
		removed = true
	}
	return removed
}

// removeOrMove removes a folder from its parent. If the folder is too deep, it is moved to the top of the tree, and the
// top is read until it is empty.
func (t *treeRemoval) removeOrMove(parent *os.Root, name, path string, depth int) error {
	if depth < openFolders {
		return t.removeFolder(parent, name, path, depth+1)
	}
	if err := makeWritable(parent, name); err != nil { // a folder that is not writable cannot be moved
		return err
	}
	return t.root.Rename(path, filepath.Join(t.top, rand.Text()))
}

// makeWritable gives the owner all rights to a folder. It does not follow links.
func makeWritable(parent *os.Root, name string) error {
	const all = 0o700
	info, err := parent.Lstat(name)
	if err != nil || !info.IsDir() || info.Mode().Perm()&all == all {
		return err
	}
	return parent.Chmod(name, info.Mode().Perm()|all)
}

// pointsUnder returns those of points that are at folder or below it.
func pointsUnder(folder string, points []string) (in []string) {
	for _, point := range points {
		if rest, ok := strings.CutPrefix(point, folder); ok && (rest == "" || rest[0] == filepath.Separator) {
			in = append(in, point)
		}
	}
	return in
}
