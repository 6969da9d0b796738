package e2e_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"sallyport/internal/testenv"
	"sallyport/runner"
)

const volumeHooks = `
hooks:
  quick: {callers: [load], command: [/bin/true]}
`

// ownVolume changes a volume as the kubelet does before a pod with that fsGroup starts: everything in it is given to
// the group, which may read and write, and new files get the same group.
func ownVolume(t *testing.T, volume string, group int) {
	t.Helper()
	mustSucceed(t, filepath.WalkDir(volume, func(path string, e fs.DirEntry, err error) error {
		mustSucceed(t, err)
		mustSucceed(t, os.Lchown(path, -1, group))
		info, err := e.Info()
		mustSucceed(t, err)
		mode := info.Mode().Perm() | 0o660
		if e.IsDir() {
			mode |= 0o110
			mode |= fs.ModeSetgid
		}
		if info.Mode().Type() == fs.ModeSymlink {
			return nil
		}
		return os.Chmod(path, mode)
	}))
}

// runInPod makes the next servers run as a user of their own with a supplementary group, where no user or group has a
// name, as in an image. users is the content of /etc/group.
func (in *installation) runInPod(group int, users string) {
	in.t.Helper()
	uid := in.runAsUser(5000)
	in.write("group", users, 0o644)
	in.prepare = func(cmd *exec.Cmd) {
		const enter = `mount --bind "$0/group" /etc/group; mount --bind /dev/null /etc/nsswitch.conf; ` +
			`mount --bind /dev/null /etc/passwd; exec "$@"`
		path, err := exec.LookPath("unshare")
		mustSucceed(in.t, err)
		args := []string{
			"unshare", "--mount", "sh", "-ec", enter, in.dir,
			"setpriv", fmt.Sprint("--reuid=", uid), fmt.Sprint("--regid=", uid), fmt.Sprint("--groups=", group), in.program,
		}
		cmd.Path, cmd.Args = path, append(args, cmd.Args[1:]...)
	}
}

// TestVolume_GroupOfThePod serves from a state folder on a volume as the kubelet makes it, root:fsGroup 2770. It serves
// neither if the group has another member, nor if
// others may write the volume.
func TestVolume_GroupOfThePod(t *testing.T) {
	if os.Geteuid() != 0 {
		testenv.Skip(t, "the volume of a pod: only root can give it to a group")
	}
	testenv.Need(t, "setpriv", "unshare")
	in := install(t, "sallyport", volumeHooks)
	const group = 77_777
	in.runInPod(group, "")
	volume := filepath.Join(in.dir, "volume")
	mustSucceed(t, os.Mkdir(volume, 0o755))
	mustSucceed(t, os.Mkdir(filepath.Join(volume, "lost+found"), 0o700))
	ownVolume(t, volume, group)
	in.write("sallyport.yaml", strings.Replace(string(in.read("sallyport.yaml")), in.dir+"/state", volume+"/state", 1), 0o644)

	in.start(true)
	first := in.deliver("quick", `{"n": 1}`, "Prefer: wait=20").run()
	in.endServer()
	in.start(true) // fsGroupChangePolicy: OnRootMismatch leaves it as it is
	again := in.deliver("quick", `{"n": 1}`).run()
	if first.State != runner.Succeeded || again.ID != first.ID {
		t.Errorf("the run was %+v, and the repeated delivery got %+v", first, again)
	}
	in.endServer()

	in.write("group", fmt.Sprintf("team:x:%d:alice\n", group), 0o644)
	in.refuseVolume("its group or others may")
	in.write("group", "", 0o644)
	mustSucceed(t, os.Chmod(volume, 0o777))
	in.refuseVolume("its group or others may write " + volume)
	mustSucceed(t, os.Chmod(volume, 0o770|fs.ModeSetgid))
	config := string(in.read("sallyport.yaml"))
	in.write("sallyport.yaml", strings.Replace(config, volume+"/state", volume, 1), 0o644)
	in.refuseVolume("it belongs to root; name a folder in it instead")
}

// refuseVolume starts a server, which must end with that reason.
func (in *installation) refuseVolume(why string) {
	in.t.Helper()
	from := len(in.read("log"))
	in.start(false)
	<-in.ended
	code := in.server.ProcessState.Sys().(syscall.WaitStatus).ExitStatus()
	if log := in.read("log")[from:]; code != 1 || !bytes.Contains(log, []byte(why)) {
		in.t.Errorf("the server exited with %d, want 1 and %q:\n%s", code, why, log)
	}
}
