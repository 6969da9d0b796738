package pathsafe

import (
	"errors"

	"golang.org/x/sys/unix"
)

// mayHaveACL reports whether a file may have an access control list. The bits of the group are then the mask of the
// list (acl(5)), which may admit any user.
func mayHaveACL(path string) bool {
	_, err := unix.Getxattr(path, "system.posix_acl_access", nil)
	return !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP)
}
