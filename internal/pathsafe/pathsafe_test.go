package pathsafe_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"sallyport/internal/pathsafe"
)

// makeTree makes a/b/file, and links to it of every kind.
func makeTree(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	mustSucceed(t, err)
	mustSucceed(t, os.MkdirAll(dir+"/a/b", 0o755))
	mustSucceed(t, os.Mkdir(dir+"/c", 0o755))
	mustSucceed(t, os.WriteFile(dir+"/a/b/file", nil, 0o600))
	for name, to := range map[string]string{
		"direct": "a/b/file", "absolute": dir + "/a/b/file", "up": "../" + filepath.Base(dir) + "/a/b/file",
		"folder": "c/more", "c/more": "../a/b", "round": "round", "nowhere": "a/none",
	} {
		mustSucceed(t, os.Symlink(to, filepath.Join(dir, name)))
	}
	return dir
}

func mustSucceed(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestResolvePath_Links follows links of every kind: each link, and what it leads through, is on the way.
func TestResolvePath_Links(t *testing.T) {
	dir := makeTree(t)
	for name, want := range map[string]string{
		"a/b/file":    "a a/b a/b/file",
		"direct":      "direct a a/b a/b/file",
		"absolute":    "absolute . a a/b a/b/file",
		"up":          "up .. . a a/b a/b/file",
		"folder/file": "folder c c/more c/.. a a/b a/b/file",
	} {
		way, err := pathsafe.ResolvePath(filepath.Join(dir, name))
		mustSucceed(t, err)
		var got []string
		for _, e := range way {
			rel, err := filepath.Rel(dir, e.Path)
			mustSucceed(t, err)
			if !strings.HasPrefix(rel, "../") && rel != ".." {
				got = append(got, rel)
			}
		}
		wanted := strings.Fields(want)
		for i, w := range wanted {
			wanted[i] = filepath.Clean(w)
		}
		wanted = slices.DeleteFunc(wanted, func(w string) bool { return w == ".." })
		if got[0] == "." { // the folder itself
			got = got[1:]
		}
		if !slices.Equal(got, wanted) || way[0].Path != "/" {
			t.Errorf("%s: %q, want %q", name, got, wanted)
		}
	}
	if _, err := pathsafe.ResolvePath(dir + "/round"); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("links in a circle: %v", err)
	}
	if _, err := pathsafe.ResolvePath(dir + "/nowhere"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a link to nowhere: %v", err)
	}
}

// TestEntry_Foreign takes the owner of a file, and root, for trusted, and every other user for foreign.
func TestEntry_Foreign(t *testing.T) {
	way, err := pathsafe.ResolvePath(makeTree(t) + "/direct")
	mustSucceed(t, err)
	for _, e := range way {
		owner := e.Sys().(*syscall.Stat_t).Uid
		if e.IsForeign(int(owner)) {
			t.Errorf("%s is foreign to its owner", e.Path)
		}
		if other := int(owner) + 1; e.IsForeign(other) != (owner != 0) {
			t.Errorf("%s of %d is foreign to %d: %v", e.Path, owner, other, e.IsForeign(other))
		}
	}
}

// TestFindFaults_AllAtOnce reports all faults that let other users change a file at once, but not those that a sticky
// folder prevents.
func TestFindFaults_AllAtOnce(t *testing.T) {
	dir := makeTree(t)
	faults := func(name string) []string {
		t.Helper()
		way, err := pathsafe.ResolvePath(filepath.Join(dir, name))
		mustSucceed(t, err)
		return pathsafe.FindFaults(name, way)
	}
	if got := faults("direct"); len(got) > 0 {
		t.Errorf("all is well, and %q", got)
	}
	mustSucceed(t, os.Chmod(dir+"/a", 0o777|os.ModeSticky))
	if got := faults("direct"); len(got) > 0 {
		t.Errorf("a sticky folder, and %q", got)
	}
	mustSucceed(t, os.Chmod(dir+"/a", 0o775))
	mustSucceed(t, os.Chmod(dir+"/a/b/file", 0o602))
	if got := faults("direct"); len(got) != 2 || !strings.HasPrefix(got[0], "direct may be written") ||
		!strings.HasPrefix(got[1], "the folder "+dir+"/a may be written") {
		t.Errorf("%q", got)
	}
	mustSucceed(t, os.Chmod(dir+"/a", 0o755))
	if got := faults("a"); len(got) != 1 || got[0] != "a is not a regular file" {
		t.Errorf("a folder: %q", got)
	}
}
