package pathsafe

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// CheckPrivate returns why a folder is not private to the effective user, or could not be
// made so if it is missing, or "". Other users must not be able to enter it, nor to
// replace it by writing to its parent, or to the folder of a link to it. The error is
// about finding it.
//
// A group that may enter or write is no other user if it has no other member: Kubernetes gives a volume to the group
// of a pod (fsGroup) in this way.
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
	case known && owner.Uid == 0 && os.Geteuid() != 0:
		return "it belongs to root; name a folder in it instead, which this user creates", nil
	case !known || int(owner.Uid) != os.Geteuid():
		return fmt.Sprintf("it belongs to another user than %d (the user this runs as)", os.Geteuid()), nil
	case readGroups("/etc").admitsOthers(real, info, 0o077):
		return fmt.Sprintf("its group or others may enter it (its mode is %04o); chmod 0700 it",
			info.Mode().Perm()), nil
	}
	return checkParents(path, real)
}

// checkParents checks the folders that a folder is in. In a sticky folder (/tmp), other
// users cannot rename it.
func checkParents(path, real string) (why string, err error) {
	for _, dir := range []string{filepath.Dir(path), filepath.Dir(real)} {
		info, err := os.Stat(dir)
		if err != nil {
			return "", err
		}
		if info.Mode()&fs.ModeSticky == 0 && readGroups("/etc").admitsOthers(dir, info, 0o022) {
			return fmt.Sprintf("its group or others may write %s, which contains it; chmod go-w that", dir), nil
		}
	}
	return "", nil
}
