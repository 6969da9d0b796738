package rundir_test

import (
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"sallyport/runner/hook"
	"sallyport/runner/process/processtest"
	"sallyport/runner/process/rundir"
)

// TestRemove_ReadOnlyFolders checks that a server that is not root removes read-only folders, such as
// Go's module cache, and does not change the mode of a folder that a link leads to.
func TestRemove_ReadOnlyFolders(t *testing.T) {
	const another = 65534
	if os.Geteuid() == 0 && !processtest.RunElsewhere(t, "folders that may only be read", &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: another, Gid: another}}) {
		return
	}
	linked := t.TempDir()
	precious := processtest.MakeFile(t, linked)
	if err := os.Chmod(linked, 0o555); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(linked, 0o700) }) // the clean-up of the test needs this
	b := processtest.NewBench(t, hook.Spec{Command: processtest.Script(t, `mkdir -p mod/a/b mod/none; echo > mod/a/b/c; echo > mod/none/d; ln -s "$1" mod/a/out; ln -s ../.. mod/up
chmod 0555 mod/a/b mod/a; chmod 0 mod/none; chmod 0500 mod .`, linked)})
	o := processtest.NewOrder()
	if err := b.Start(o); err != nil {
		t.Fatal(err)
	}
	processtest.CheckExit(t, b.AwaitEnd(t, o.Run), 0)
	b.AwaitRemoval(t, o.Run)
	if info, err := os.Stat(linked); err != nil || info.Mode().Perm() != 0o555 {
		t.Errorf("what a link leads to: %v, %v", info.Mode(), err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}

	folder := filepath.Join(b.Dir, o.Run)
	locked := filepath.Join(folder, "locked")
	if err := os.Mkdir(locked, 0o700); err != nil {
		t.Fatal(err)
	}
	processtest.MakeFile(t, locked)
	for _, name := range []string{locked, folder} {
		if err := os.Chmod(name, 0o555); err != nil {
			t.Fatal(err)
		}
	}
	if err := rundir.Remove(b.Dir, o.Run); err != nil || slices.Contains(having(b, []string{o.Run}, "."), o.Run) {
		t.Errorf("%v", err)
	}
}

// TestRemove_DeepFolders checks that nested folders do not take one descriptor each, until the
// supervisor has none left.
func TestRemove_DeepFolders(t *testing.T) {
	if !processtest.RunElsewhere(t, "folders deep in one another", &syscall.SysProcAttr{}) {
		return
	}
	const most = 150
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: most, Max: most}); err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(t.TempDir(), "deep.pl")
	deep := `#!/usr/bin/perl
for (my $i = 0; $i < 1000; $i++) { mkdir "d" or die; chdir "d"; open(my $f, ">", "file"); chmod 0500, "." if $i % 100 == 0 and $> == 0; }
`
	if err := os.WriteFile(script, []byte(deep), 0o700); err != nil {
		t.Fatal(err)
	}
	b := processtest.NewBench(t, hook.Spec{Command: []string{script}})
	o := processtest.NewOrder()
	if err := b.Start(o); err != nil {
		t.Fatal(err)
	}
	processtest.CheckExit(t, b.AwaitEnd(t, o.Run), 0)
	b.AwaitRemoval(t, o.Run)
}

// TestRemove_ManyFiles removes a folder with more files than one listing returns.
func TestRemove_ManyFiles(t *testing.T) {
	b := processtest.NewBench(t, hook.Spec{Command: processtest.Script(t, `i=0; while [ $i -lt 3000 ]; do : > $i; i=$((i+1)); done; mkdir d; seq 2000 | (cd d; xargs touch)`)})
	o := processtest.NewOrder()
	if err := b.Start(o); err != nil {
		t.Fatal(err)
	}
	processtest.CheckExit(t, b.AwaitEnd(t, o.Run), 0)
	b.AwaitRemoval(t, o.Run)
}
