// Package owned tells who could put another file in the place of one: whoever
// owns it, a folder on the way to it, or a link there.
package owned

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

// Way returns what is looked up on the way to a file, from the root on and
// through every link; the file itself comes last.
func Way(name string) ([]Entry, error) {
	name, err := filepath.Abs(name)
	if err != nil {
		return nil, err
	}
	const root = string(filepath.Separator)
	var way []Entry
	at, rest, links := root, append([]string{"."}, split(name)...), 0
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
		rest = append(split(to), rest...)
	}
	return way, nil
}

func split(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == filepath.Separator })
}

// Foreign reports whether an entry belongs to another user than root and uid.
func (e Entry) Foreign(uid int) bool {
	owner, ok := e.Sys().(*syscall.Stat_t)
	return !ok || owner.Uid != 0 && int(owner.Uid) != uid
}

// ByAnother tells what on the way to a file belongs to another user than root and
// the one as whom this runs; nothing if all is theirs.
func ByAnother(way []Entry) string {
	for i, e := range way {
		switch uid := os.Geteuid(); {
		case !e.Foreign(uid):
		case i == len(way)-1:
			return fmt.Sprintf("%s belongs to another user than root and %d, as whom this runs, and may be changed by them: chown it", e.Path, uid)
		default:
			return fmt.Sprintf("%s belongs to another user than root and %d, as whom this runs, and they may swap what is found by it: chown it", e.Path, uid)
		}
	}
	return ""
}
