package process_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/internal/testenv"
	"sallyport/runner"
	"sallyport/runner/process"
	"sallyport/runner/process/processtest"
)

const elsewhereMark = "SALLYPORT_TEST_ELSEWHERE"

// elsewhere tells whether this is the process that runs a test with attr. If not,
// it runs the test there, and skips it where that cannot be.
func elsewhere(t *testing.T, what string, attr *syscall.SysProcAttr) bool {
	t.Helper()
	if os.Getenv(elsewhereMark) != "" {
		return true
	}
	dir := t.TempDir()
	if attr.Credential != nil {
		err := errors.Join(os.Chmod(filepath.Dir(dir), 0o711), os.Chown(dir, int(attr.Credential.Uid), int(attr.Credential.Gid)))
		if err != nil {
			t.Fatal(err)
		}
	}
	// Not by its name: the folder of a test program lets nobody else in.
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1")
	cmd.Env, cmd.Dir, cmd.SysProcAttr = append(os.Environ(), elsewhereMark+"=1", "TMPDIR="+dir), "/", attr
	out, err := cmd.CombinedOutput()
	switch {
	case cmd.Process == nil:
		testenv.Skip(t, what+": "+err.Error())
	case bytes.Contains(out, []byte(noMount)):
		testenv.Skip(t, what+", because this user may mount nothing, even in a namespace")
	case err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name()+" ")):
		t.Fatalf("%v\n%s", err, out)
	}
	return false
}

const noMount = "no mount of its own"

func fileIn(t testing.TB, dir string) string {
	t.Helper()
	name := filepath.Join(dir, "file")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestWhatIsMountedInAFolderOutlivesIt: a removal that goes through a mount takes
// what is kept elsewhere.
func TestWhatIsMountedInAFolderOutlivesIt(t *testing.T) {
	const what = "what is mounted in the folder of a run"
	if os.Geteuid() != 0 {
		// In a user namespace of its own, /bin/sh belongs to nobody that is known.
		testenv.Skip(t, what+", because only root may mount something")
	}
	if !elsewhere(t, what, &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}) {
		return
	}
	if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		t.Fatal(noMount, err)
	}
	for _, moved := range []bool{false, true} {
		for _, point := range []string{"work", "work/deep/a \\040\t#\u00a0b"} {
			t.Run(fmt.Sprintf("moved %v, %q", moved, point), func(t *testing.T) { mountedIn(t, point, moved) })
		}
	}
}

func mountedIn(t *testing.T, point string, moved bool) {
	t.Helper()
	precious := fileIn(t, t.TempDir())
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	command, release := processtest.GatedScript(t, "")
	b := processtest.NewLoggingBench(t, runner.HookSpec{Command: command}, log)
	b.SettleAgainAfter(time.Millisecond)
	o := processtest.NewOrder()
	if err := b.Start(o); err != nil {
		t.Fatal(err)
	}
	b.AwaitText(t, o.Run, "ready")
	if moved { // whoever moves the state folder moves what is mounted there along
		to := filepath.Join(t.TempDir(), "runs")
		if err := os.Rename(b.Dir, to); err != nil {
			t.Fatal(err)
		}
		b.Dir = to
	}
	at := filepath.Join(b.Dir, o.Run, point)
	if err := os.MkdirAll(at, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount(filepath.Dir(precious), at, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(noMount, err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(at, syscall.MNT_DETACH) })
	release()
	processtest.CheckExit(t, b.AwaitEnd(t, o.Run), 0)
	var warning []byte
	processtest.Eventually(t, "it is tried", func() bool {
		text, _ := os.ReadFile(log.Name())
		_, warning, _ = bytes.Cut(text, []byte("level=WARN"))
		return bytes.Contains(warning, []byte("removing a run's working folder")) && bytes.HasSuffix(warning, []byte("\n"))
	})
	if named := fmt.Sprintf("something is mounted there, and stays until it is unmounted: %s", filepath.Join(b.Dir, o.Run, "work")); !bytes.Contains(warning, []byte(named)) || bytes.Contains(warning, []byte("WARN")) {
		t.Errorf("the log: %s", warning)
	}
	stays := func(err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), at) {
			t.Errorf("%v, and %s is mounted", err, at)
		}
		if _, err := os.Stat(precious); err != nil {
			t.Error(err)
		}
		if work, mark := b.Remains(t, o.Run); !work || !mark || b.ReadStatus(t, o.Run).Run != o.Run {
			t.Errorf("there is a folder: %v, a mark: %v", work, mark)
		}
	}
	nobody := func(string) (bool, error) { return false, nil }
	stays(process.Remove(b.Dir, o.Run))
	_, err = process.Sweep(t.Context(), b.Dir, 0, nobody)
	stays(err)

	if err := syscall.Unmount(at, 0); err != nil {
		t.Fatal(err)
	}
	b.AwaitRemoval(t, o.Run)
	if removed, err := process.Sweep(t.Context(), b.Dir, 0, nobody); removed != 1 || err != nil {
		t.Errorf("removed %d, %v", removed, err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
}

// TestFoldersThatMayOnlyBeReadAreRemoved, such as Go's cache of modules, by a
// server that is not root; and nothing is unlocked that a link leads to.
func TestFoldersThatMayOnlyBeReadAreRemoved(t *testing.T) {
	const another = 65534
	if os.Geteuid() == 0 && !elsewhere(t, "folders that may only be read", &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: another, Gid: another}}) {
		return
	}
	linked := t.TempDir()
	precious := fileIn(t, linked)
	if err := os.Chmod(linked, 0o555); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(linked, 0o700) }) // as who removes it needs
	b := processtest.NewBench(t, runner.HookSpec{Command: processtest.Script(t, `mkdir -p mod/a/b mod/none; echo > mod/a/b/c; echo > mod/none/d; ln -s "$1" mod/a/out; ln -s ../.. mod/up
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
	fileIn(t, locked)
	for _, name := range []string{locked, folder} {
		if err := os.Chmod(name, 0o555); err != nil {
			t.Fatal(err)
		}
	}
	if err := process.Remove(b.Dir, o.Run); err != nil || slices.Contains(having(b, []string{o.Run}, "."), o.Run) {
		t.Errorf("%v", err)
	}
}

// TestRemove_DeepFoldersTakeFewDescriptors: each of them would take one, until the
// supervisor has none left for anything else.
func TestRemove_DeepFoldersTakeFewDescriptors(t *testing.T) {
	if !elsewhere(t, "folders deep in one another", &syscall.SysProcAttr{}) {
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
	b := processtest.NewBench(t, runner.HookSpec{Command: []string{script}})
	o := processtest.NewOrder()
	if err := b.Start(o); err != nil {
		t.Fatal(err)
	}
	processtest.CheckExit(t, b.AwaitEnd(t, o.Run), 0)
	b.AwaitRemoval(t, o.Run)
}

// TestRemove_ManyFilesInOneFolder are more than are listed at once.
func TestRemove_ManyFilesInOneFolder(t *testing.T) {
	b := processtest.NewBench(t, runner.HookSpec{Command: processtest.Script(t, `i=0; while [ $i -lt 3000 ]; do : > $i; i=$((i+1)); done; mkdir d; seq 2000 | (cd d; xargs touch)`)})
	o := processtest.NewOrder()
	if err := b.Start(o); err != nil {
		t.Fatal(err)
	}
	processtest.CheckExit(t, b.AwaitEnd(t, o.Run), 0)
	b.AwaitRemoval(t, o.Run)
}
