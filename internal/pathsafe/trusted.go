package pathsafe

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
)

// ReadTrusted reads a file that decides what runs or which callers are trusted: the configuration, a
// key, a CA, a CRL, a key set. It follows links, because Kubernetes mounts secrets as such.
// Messages call the file by name.
//
// The faults name everything that lets another user than root and the effective user change
// the content: the owner of the file, of a link or of a folder on the way to it, a folder that
// others can write, and the bits of forbidden in the mode of the file. With faults, the content
// is returned as well, so that a caller can report what else is wrong with it.
//
// It does not block on a FIFO. Errors are those of opening and reading, ErrNotRegular, and one
// for a file of more than limit bytes.
func ReadTrusted(path, name string, limit int, forbidden fs.FileMode) (content []byte, faults []string, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close() //nolint:errcheck // nothing was written
	info, err := statRegular(f, name)
	if err != nil {
		return nil, nil, err
	}
	if mode := info.Mode().Perm(); mode&forbidden != 0 {
		faults = append(faults, fmt.Sprintf("%s may be %s (its mode is %04o): chmod %04o",
			name, describeAccess(mode&forbidden), mode, mode&^forbidden))
	}
	way, err := ResolvePath(path)
	if err != nil {
		return nil, nil, err
	}
	if !os.SameFile(way[len(way)-1].FileInfo, info) { // then way is not about the file that was opened
		return nil, nil, fmt.Errorf("%s was replaced while it was read", name)
	}
	faults = append(faults, findSwappable(name, way)...)
	content, err = io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err == nil && len(content) > limit {
		err = fmt.Errorf("%s is over %d KiB", name, limit>>10)
	}
	if err != nil {
		return nil, nil, err
	}
	return content, faults, nil
}

// findSwappable returns what lets other users replace a file. In a sticky folder (/tmp) they can rename only
// their own files.
func findSwappable(name string, way []Entry) (faults []string) {
	open := slices.IndexFunc(way, func(e Entry) bool {
		return e.IsDir() && e.Mode()&0o022 != 0 && e.Mode()&fs.ModeSticky == 0
	})
	if open >= 0 {
		faults = append(faults, fmt.Sprintf(
			"the folder %s may be written by its group or by others, so they may replace %s: chmod go-w",
			way[open].Path, name))
	}
	if whose := FindForeign(way); whose != "" {
		faults = append(faults, whose)
	}
	return faults
}

// describeAccess says in words what the bits of a mode allow to which users.
func describeAccess(bits fs.FileMode) string {
	var what, who []string
	if bits&0o055 != 0 {
		what = append(what, "read")
	}
	if bits&0o022 != 0 {
		what = append(what, "changed")
	}
	if bits&0o070 != 0 {
		who = append(who, "by its group")
	}
	if bits&0o007 != 0 {
		who = append(who, "by others")
	}
	return strings.Join(what, " or ") + " " + strings.Join(who, " or ")
}
