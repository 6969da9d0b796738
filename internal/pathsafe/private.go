package pathsafe

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// CheckPrivate tells what keeps a folder from being ours alone, or from being made so
// where it is missing; nothing if it is. Others may not enter it, nor put another
// in its place: by writing to the folder above, or to the one in which a link to it
// stands. The error is about finding it.
func CheckPrivate(dir string) (why string, err error) {
	path, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return checkParents(path, path)
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(real)
	if err != nil {
		return "", err
	}
	owner, known := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.IsDir():
		return "it is not a folder", nil
	case !known || int(owner.Uid) != os.Geteuid():
		return fmt.Sprintf("it belongs to another user than %d, as whom this runs", os.Geteuid()), nil
	case info.Mode().Perm()&0o077 != 0:
		return fmt.Sprintf("its group or others may enter it (its mode is %04o); chmod 0700 it", info.Mode().Perm()), nil
	}
	return checkParents(path, real)
}

// checkParents judges what holds a folder. A sticky folder (/tmp) keeps others from
// renaming what is ours.
func checkParents(path, real string) (why string, err error) {
	for _, dir := range []string{filepath.Dir(path), filepath.Dir(real)} {
		info, err := os.Stat(dir)
		if err != nil {
			return "", err
		}
		if info.Mode()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0 {
			return fmt.Sprintf("its group or others may write %s, which holds it; chmod go-w that", dir), nil
		}
	}
	return "", nil
}
