package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/internal/config"
)

// TestWatch_SameSizeAndTime: "cp -p" and rsync write in place: the size and the modification time do not show that the
// key is another one.
func TestWatch_SameSizeAndTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startWatching(t)
		name := filepath.Join(p.dir, "worker")
		before, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		other := []byte(strings.ToUpper(string(text)))
		for same := true; same; { // until the clock of the file system has advanced
			if err := os.WriteFile(name, other, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(name, before.ModTime(), before.ModTime()); err != nil {
				t.Fatal(err)
			}
			now, err := os.Stat(name)
			if err != nil {
				t.Fatal(err)
			}
			same = now.Sys().(*syscall.Stat_t).Ctim == before.Sys().(*syscall.Stat_t).Ctim
		}
		p.waitFor(time.Second)
		p.adopted(2, config.ReloadStatus{Reloads: 1})
	})
}
