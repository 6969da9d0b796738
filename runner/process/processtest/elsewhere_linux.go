package processtest

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"sallyport/internal/testenv"
)

const elsewhereMark = "SALLYPORT_TEST_ELSEWHERE"

// RunElsewhere reports whether this is the process that runs a test with attr. If not, it runs the test in such a
// process, and skips the test where the system does not allow that.
func RunElsewhere(t testing.TB, what string, attr *syscall.SysProcAttr) bool {
	t.Helper()
	if os.Getenv(elsewhereMark) != "" {
		return true
	}
	dir := t.TempDir()
	if attr.Credential != nil {
		err := errors.Join(os.Chmod(filepath.Dir(dir), 0o711),
			os.Chown(dir, int(attr.Credential.Uid), int(attr.Credential.Gid)))
		if err != nil {
			t.Fatal(err)
		}
	}
	// The path of the test program does not work: no other user may enter its folder.
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1")
	cmd.Env, cmd.Dir, cmd.SysProcAttr = append(os.Environ(), elsewhereMark+"=1", "TMPDIR="+dir), "/", attr
	out, err := cmd.CombinedOutput()
	switch {
	case cmd.Process == nil:
		testenv.Skip(t, what+": "+err.Error())
	case bytes.Contains(out, []byte(NoMount)):
		testenv.Skip(t, what+", because this user may mount nothing, even in a namespace")
	case err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name()+" ")):
		t.Fatalf("%v\n%s", err, out)
	}
	return false
}

// NoMount begins the failure message of a test that is not allowed to mount anything.
const NoMount = "the test may not mount anything"

// MakeFile creates an empty file in dir and returns its name.
func MakeFile(t testing.TB, dir string) string {
	t.Helper()
	name := filepath.Join(dir, "file")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
