package pathsafe_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"sallyport/internal/pathsafe"
)

// TestReplaceFile_ContentAndMode replaces files with each durability: content and mode are the new ones, and no other
// file is left.
func TestReplaceFile_ContentAndMode(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	mustSucceed(t, err)
	defer func() { mustSucceed(t, root.Close()) }()
	mustSucceed(t, os.Mkdir(filepath.Join(dir, "sub"), 0o700))
	for d, mode := range map[pathsafe.Durability]fs.FileMode{
		pathsafe.Unsynced: 0o600, pathsafe.Whole: 0o644,
		pathsafe.Synced: 0o400,
	} {
		for _, content := range []string{"first", ""} {
			mustSucceed(t, pathsafe.ReplaceFile(root, "sub/file", []byte(content), mode, d))
			text, err := root.ReadFile("sub/file")
			mustSucceed(t, err)
			info, err := root.Stat("sub/file")
			mustSucceed(t, err)
			if string(text) != content || info.Mode() != mode {
				t.Errorf("durability %d: got %q, mode %v; want %q, %v", d, text, info.Mode(), content, mode)
			}
		}
	}
	if entries, err := os.ReadDir(filepath.Join(dir, "sub")); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// TestReplaceFile_InTheWay puts other files under the temporary name: a FIFO would block a writer, and a link would
// lead elsewhere.
func TestReplaceFile_InTheWay(t *testing.T) {
	dir := t.TempDir()
	name, elsewhere := filepath.Join(dir, "file"), filepath.Join(dir, "elsewhere")
	mustSucceed(t, os.WriteFile(elsewhere, []byte("theirs"), 0o600))
	for what, put := range map[string]func(path string) error{
		"FIFO": func(path string) error { return unix.Mkfifo(path, 0o600) },
		"link": func(path string) error { return os.Symlink(elsewhere, path) },
		"file": func(path string) error { return os.WriteFile(path, []byte("longer than ours"), 0o666) },
	} {
		mustSucceed(t, put(name+".new"))
		mustSucceed(t, pathsafe.ReplaceFileAt(name, []byte("ours"), 0o600))
		if text, err := os.ReadFile(name); err != nil || string(text) != "ours" {
			t.Errorf("%s in the way: got %q, %v", what, text, err)
		}
	}
	if text, err := os.ReadFile(elsewhere); err != nil || string(text) != "theirs" {
		t.Errorf("what the link leads to is %q, %v", text, err)
	}
}

// TestReplaceFile_FailureKeepsTheOld fails to replace a folder: it stays, and no other file is left.
func TestReplaceFile_FailureKeepsTheOld(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "file")
	mustSucceed(t, os.MkdirAll(filepath.Join(name, "full"), 0o700))
	if err := pathsafe.ReplaceFileAt(name, []byte("new"), 0o600); err == nil {
		t.Error("a folder was replaced")
	}
	if _, err := os.Lstat(name + ".new"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(name, "full")); err != nil {
		t.Error(err)
	}
}
