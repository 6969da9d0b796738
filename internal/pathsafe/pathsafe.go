// Package pathsafe opens and writes files safely, and finds which other users could change them.
//
// [ReadTrusted] reads a file that decides what runs or which callers are trusted, and reports every way in which
// another user could change or replace it. [ResolvePath] and [FindFaults] do the same for programs, [CheckPrivate] for
// the state folder. [OpenRegular] never blocks on a FIFO. [ReplaceFile] replaces a file atomically, [CreateFile] makes
// one, and [SyncFolder] makes names durable. [LockFolder] keeps a second process out of a folder, and a [Pin] notices
// when a file that is in use was removed or replaced.
//
// Faults are texts for the operator, which say what is wrong and what to do. Errors say what could not be read.
package pathsafe

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Entry is a file, folder or link on the way to a file.
type Entry struct {
	fs.FileInfo // of a link, its own

	Path string
}

// maxLinks is how many links Linux follows (path_resolution(7)).
const maxLinks = 40

// ResolvePath returns everything that is looked up on the way to a file, from the root and
// through every link. The file itself comes last.
func ResolvePath(name string) ([]Entry, error) {
	name, err := filepath.Abs(name)
	if err != nil {
		return nil, err
	}
	const root = string(filepath.Separator)
	var way []Entry
	at, rest, links := root, append([]string{"."}, splitPath(name)...), 0
	for len(rest) > 0 {
		next := filepath.Join(at, rest[0]) // at is not a link, so .. is its parent
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

// ownerID returns the user id of the owner, or -1 if it is not known.
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

// FindForeign describes the first entry on the way to a file that belongs to another user
// than root and the effective user, or returns "".
func FindForeign(way []Entry) string {
	uid := os.Geteuid()
	for i, e := range way {
		if !e.IsForeign(uid) {
			continue
		}
		risk, mend := "they may replace what is found by it", "chown it"
		if i == len(way)-1 {
			risk = "may be changed by them"
		}
		if e.ownerID() == unmapped {
			mend += ", or map its owner into the user namespace that this runs in"
		}
		return fmt.Sprintf("%s belongs to another user than root and %d (the user this runs as), and %s: %s",
			e.Path, uid, risk, mend)
	}
	return ""
}

// FindFaults returns every reason why the file name, resolved to way, must not be run: it
// is not a regular file, or users other than root and the effective user can write it, or
// can replace it because they can write or own what is on the way.
func FindFaults(name string, way []Entry) (faults []string) {
	switch mode := way[len(way)-1].Mode(); {
	case !mode.IsRegular():
		faults = append(faults, name+" is not a regular file")
	case mode&0o022 != 0:
		faults = append(faults, fmt.Sprintf("%s may be written by its group or by others (mode %04o): chmod go-w",
			name, mode.Perm()))
	}
	return append(faults, findSwappable(name, way)...)
}
