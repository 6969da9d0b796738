package pathsafe_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sallyport/internal/pathsafe"
)

// TestGroups_OnlyOwnPrivate admits the group of a folder only if it is a group of this process, and nothing says that
// another user is in it, or may be.
func TestGroups_OnlyOwnPrivate(t *testing.T) {
	dir := t.TempDir()
	uid, gid := os.Geteuid(), os.Getegid()
	mustSucceed(t, os.Lchown(dir, -1, gid)) // the file system may have given it another group
	const safe, refused = false, true
	for name, c := range map[string]struct {
		mode  os.FileMode
		files string // "name content" in lines; UID and GID are those of this process
		want  bool
	}{
		"no files, as in an image":    {0o2770, "", safe},
		"users of other groups":       {0o2770, "passwd a:x:UID:GID::/:\npasswd b:x:71:72::/:\ngroup g:x:GID:\ngroup h:x:72:b", safe},
		"a member by name is us":      {0o2770, "passwd a:x:UID:99::/:\ngroup g:x:GID:a", safe},
		"only the bits in question":   {0o2755, "", refused},
		"others":                      {0o0777, "", refused},
		"another member":              {0o2770, "passwd a:x:UID:GID::/:\ngroup g:x:GID:b", refused},
		"another name of the group":   {0o2770, "group g:x:GID:\ngroup h:x:GID:b", refused},
		"the primary group of others": {0o2770, "passwd b:x:71:GID::/:", refused},
		"only files":                  {0o2770, "nsswitch.conf passwd: files\nnsswitch.conf hosts: files dns", safe},
		"a directory of users":        {0o2770, "nsswitch.conf passwd: files\nnsswitch.conf group: files sss", refused},
		"private":                     {0o0700, "group g:x:GID:b", safe},
	} {
		etc := t.TempDir()
		text := strings.NewReplacer("UID", fmt.Sprint(uid), "GID", fmt.Sprint(gid)).Replace(c.files)
		for line := range strings.SplitSeq(text, "\n") {
			file, content, _ := strings.Cut(line, " ")
			if file == "" {
				continue
			}
			f, err := os.OpenFile(filepath.Join(etc, file), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
			mustSucceed(t, err)
			_, err = fmt.Fprintln(f, content)
			mustSucceed(t, err)
			mustSucceed(t, f.Close())
		}
		mustSucceed(t, os.Chmod(dir, c.mode&0o777))
		info, err := os.Stat(dir)
		mustSucceed(t, err)
		if got := pathsafe.AdmitsOthers(etc, dir, info, 0o077); got != c.want {
			t.Errorf("%s: admits others: %v, want %v", name, got, c.want)
		}
	}
	broken := t.TempDir()
	mustSucceed(t, os.Mkdir(filepath.Join(broken, "group"), 0o700)) // not readable as a file
	mustSucceed(t, os.Chmod(dir, 0o770))
	info, err := os.Stat(dir)
	mustSucceed(t, err)
	if !pathsafe.AdmitsOthers(broken, dir, info, 0o077) {
		t.Error("a group of which the members are not known was admitted")
	}
}
