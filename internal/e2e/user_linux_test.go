package e2e_test

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"sallyport/internal/testenv"
	"sallyport/runner"
)

const userHooks = `
hooks:
  own:   {callers: [load], command: [/bin/sh, DIR/job.sh], stdin: body}
  other: {callers: [load], command: [/bin/sh, DIR/job.sh], stdin: body, user: daemon}
  few:   {callers: [load], command: [/bin/sh, DIR/job.sh], stdin: body, user: daemon, groups: [mail], dir: /}
  none:  {callers: [load], command: [/bin/sh, DIR/job.sh], user: daemon, groups: [], umask: 077}
  long:  {callers: [load], command: [/bin/sh, DIR/long.sh], user: daemon, timeout: 1s, grace: 200ms}
`

const userJob = `echo "ids $(id -u) $(id -g) $(id -G)"
echo "$HOME $USER $LOGNAME $SHELL $(pwd) $(umask)"
cat /dev/stdin
echo again > /dev/stderr
for secret in DIR/secret DIR/state DIR/state/runs /etc/shadow; do
	ls -l "$secret"/ >/dev/null 2>&1 && echo "lists $secret"
	cat "$secret" >/dev/null 2>&1 && echo "reads $secret"
done
for pid in $PPID $(cat DIR/server); do
	kill -0 $pid 2>/dev/null && echo "signals $pid"
done
exit 0
`

// asRoot prepares an installation whose commands run as other users: they can read its folder, but not what is private.
func asRoot(t *testing.T, hooks string) *installation {
	t.Helper()
	if os.Geteuid() != 0 {
		testenv.Skip(t, "commands of other users: only root may start them")
	}
	in := install(t, "sallyport", hooks)
	mustSucceed(t, os.Chmod(filepath.Dir(in.dir), 0o755))
	mustSucceed(t, os.Chmod(in.dir, 0o755))
	return in
}

// TestUser_RunsAs: a command of a hook with a user has the ids, the groups and the variables of that user, can use its
// standard input and output as any other, and cannot read or signal what belongs to the server.
func TestUser_RunsAs(t *testing.T) {
	in := asRoot(t, userHooks)
	daemon, err := user.Lookup("daemon")
	mustSucceed(t, err)
	mail, err := user.LookupGroup("mail")
	mustSucceed(t, err)
	in.write("job.sh", strings.ReplaceAll(userJob, "DIR", in.dir), 0o644)
	in.write("long.sh", "sleep 600 & sleep 600\n", 0o644)
	in.start(true)
	in.write("server", strings.Trim(fmt.Sprint(in.servers()), "[]"), 0o644)

	as := func(groups, dir, umask, body string) string {
		id := daemon.Uid + " " + daemon.Gid + " " + daemon.Gid
		return "ids " + strings.TrimSpace(id+" "+groups) + "\n" +
			strings.Join([]string{daemon.HomeDir, "daemon daemon /bin/sh", dir, umask}, " ") + "\n" + body + "again\n"
	}
	for hook, want := range map[string]string{
		"other": as("", daemon.HomeDir, "0022", `{"a":1}`),
		"few":   as(mail.Gid, "/", "0022", `{"a":1}`),
		"none":  as("", daemon.HomeDir, "0077", ""),
	} {
		run := in.deliver(hook, `{"a":1}`, "Prefer: wait=20").run()
		out := string(in.sendRequest(t.Context(), "GET", "/runs/"+run.ID+"/output", "").body)
		if run.State != runner.Succeeded || out != want {
			t.Errorf("%s is %s:\n%s\nwant\n%s", hook, run.State, out, want)
		}
	}
	run := in.deliver("own", `{}`, "Prefer: wait=20").run()
	out := string(in.sendRequest(t.Context(), "GET", "/runs/"+run.ID+"/output", "").body)
	for _, shown := range []string{"reads " + in.dir + "/secret", "lists " + in.dir + "/state", "signals "} {
		if !strings.Contains(out, shown) {
			t.Errorf("as root, the command would not show %q, so the test proves nothing: %s", shown, out)
		}
	}
	in.endServer()
}

// TestUser_EndsWithRun: the processes of a command of another user end at the timeout, also after the supervisor that
// started it was killed.
func TestUser_EndsWithRun(t *testing.T) {
	in := asRoot(t, userHooks)
	in.write("job.sh", "", 0o644)
	in.write("long.sh", "trap '' TERM\nsleep 600 &\necho $$ $! > /dev/stderr\nwait\n", 0o644)
	in.start(true)
	for _, kill := range []bool{false, true} {
		path := "/runs/" + in.deliver("long", fmt.Sprintf(`{"kill":%t}`, kill)).run().ID
		var pids []string
		in.waitUntil("the command", func() bool {
			pids = strings.Fields(string(in.sendRequest(t.Context(), "GET", path+"/output", "").body))
			return len(pids) == 2
		})
		if kill {
			before := in.supervisor()
			mustSucceed(t, syscall.Kill(before, syscall.SIGKILL))
			in.waitUntil("another supervisor", func() bool { pid := in.supervisor(); return pid != 0 && pid != before })
		}
		in.waitUntil("the end of the run", func() bool {
			state := in.sendRequest(t.Context(), "GET", path, "").run().State
			return state == runner.TimedOut || kill && state == runner.Interrupted
		})
		for _, pid := range pids {
			in.waitUntil("the processes to be gone", func() bool {
				status, err := os.ReadFile("/proc/" + pid + "/status")
				return err != nil || strings.Contains(string(status), "State:\tZ")
			})
		}
	}
	in.endServer()
}
