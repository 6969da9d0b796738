package pathsafe_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"sallyport/internal/pathsafe"
)

// TestOpenRegular_RefusesOtherFiles opens a regular file, and neither a folder, a FIFO, a missing file nor a link that
// leaves the folder.
func TestOpenRegular_RefusesOtherFiles(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	mustSucceed(t, err)
	defer func() { mustSucceed(t, root.Close()) }()
	mustSucceed(t, os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o600))
	mustSucceed(t, os.Mkdir(filepath.Join(dir, "folder"), 0o700))
	mustSucceed(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	mustSucceed(t, os.Symlink(os.DevNull, filepath.Join(dir, "link")))
	if text, err := pathsafe.ReadRegular(root, "file"); err != nil || string(text) != "content" {
		t.Errorf("a regular file: %q, %v", text, err)
	}
	for _, name := range []string{"folder", "fifo"} {
		_, err := pathsafe.OpenRegular(root, name)
		if !errors.Is(err, pathsafe.ErrNotRegular) || !strings.HasPrefix(err.Error(), name) {
			t.Errorf("%s: got %v, want %v", name, err, pathsafe.ErrNotRegular)
		}
	}
	if _, err := pathsafe.OpenRegular(root, "link"); err == nil {
		t.Error("a link that leaves the folder was followed")
	}
	if _, err := pathsafe.OpenRegular(root, "missing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

// TestCreateFile_WholeOrNone leaves no part of a file when its source fails, and does not replace a file.
func TestCreateFile_WholeOrNone(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	part := iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader("part")))
	if err := pathsafe.CreateFile(name, part); !errors.Is(err, iotest.ErrTimeout) {
		t.Errorf("got %v, want %v", err, iotest.ErrTimeout)
	}
	if _, err := os.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
	mustSucceed(t, pathsafe.CreateFile(name, strings.NewReader("ours")))
	if err := pathsafe.CreateFile(name, strings.NewReader("theirs")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a file that exists: %v", err)
	}
	text, err := os.ReadFile(name)
	mustSucceed(t, err)
	info, err := os.Stat(name)
	mustSucceed(t, err)
	if string(text) != "ours" || info.Mode() != 0o600 {
		t.Errorf("got %q, mode %v", text, info.Mode())
	}
}
