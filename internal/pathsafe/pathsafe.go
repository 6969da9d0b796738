// Package pathsafe tells who could put another file in the place of one: whoever
// owns it, a folder on the way to it, or a link there.
package pathsafe

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Entry is something that is looked up on the way to a file.
type Entry struct {
	fs.FileInfo // of a link, its own

	Path string
}

// maxLinks is how many links Linux follows (path_resolution(7)).
const maxLinks = 40

// ResolvePath returns what is looked up on the way to a file, from the root on and
// through every link; the file itself comes last.
func ResolvePath(name string) ([]Entry, error) {
	name, err := filepath.Abs(name)
	if err != nil {
		return nil, err
	}
	const root = string(filepath.Separator)
	var way []Entry
	at, rest, links := root, append([]string{"."}, splitPath(name)...), 0
	for len(rest) > 0 {
		next := filepath.Join(at, rest[0]) // at is no link, so .. is the folder above
		rest = rest[1:]
		info, err := os.Lstat(next)
		if err != nil {
			return nil, err
		}
		way = append(way, Entry{info, next})
		if info.Mode()&fs.ModeSymlink == 0 {
			at = next
			continue
		}
		to, err := os.Readlink(next)
		if err != nil {
			return nil, err
		}
		if links++; links > maxLinks {
			return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.ELOOP}
		}
		if filepath.IsAbs(to) {
			at = root
		}
		rest = append(splitPath(to), rest...)
	}
	return way, nil
}

func splitPath(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == filepath.Separator })
}

// ownerID is -1 where the system does not tell.
func (e Entry) ownerID() int {
	if stat, ok := e.Sys().(*syscall.Stat_t); ok {
		return int(stat.Uid)
	}
	return -1
}

// IsForeign reports whether an entry belongs to another user than root and uid.
func (e Entry) IsForeign(uid int) bool { return e.ownerID() != 0 && e.ownerID() != uid }

// unmapped is what a user namespace shows for all owners that it does not know
// (user_namespaces(7)).
const unmapped = 65534

// FindForeign tells what on the way to a file belongs to another user than root and
// the one as whom this runs; nothing if all is theirs.
func FindForeign(way []Entry) string {
	uid := os.Geteuid()
	for i, e := range way {
		if !e.IsForeign(uid) {
			continue
		}
		risk, mend := "they may swap what is found by it", "chown it"
		if i == len(way)-1 {
			risk = "may be changed by them"
		}
		if e.ownerID() == unmapped {
			mend += ", or map its owner into the user namespace that this runs in"
		}
		return fmt.Sprintf("%s belongs to another user than root and %d, as whom this runs, and %s: %s", e.Path, uid, risk, mend)
	}
	return ""
}

// FindFaults tells all that keeps the file name, found by way, from being run: it is
// none, or others than root and the one as whom this runs may write it, or swap
// it because they may write or own what is on the way. Nothing if all is well.
func FindFaults(name string, way []Entry) (faults []string) {
	switch mode := way[len(way)-1].Mode(); {
	case !mode.IsRegular():
		faults = append(faults, name+" is no file")
	case mode&0o022 != 0:
		faults = append(faults, fmt.Sprintf("%s may be written by its group or by others (mode %04o): chmod go-w", name, mode.Perm()))
	}
	return append(faults, findSwappable(name, way)...)
}
