package e2e_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"sallyport/internal/testenv"
	"sallyport/runner"
	"sallyport/runner/process/output"
	"sallyport/runner/process/rundir"
)

const (
	diskSize   = 24 << 20
	diskOutput = 32 << 20 // of a command that writes
	auditSize  = 4 << 20  // a disk of its own: the audit log must not fail first
)

// diskJob is the command of the hooks of TestFullDisk: job.sh DIR HOW N. Its witness file is not on the disk of the
// state folder.
const diskJob = `#!/bin/sh
echo "begin $SALLYPORT_RUN" >>"$1/witness"
case $2 in
quick) code=0 ;;
hold) until [ -e "$1/go" ]; do sleep 0.02; done; code=7 ;;
write) head -c 33554432 /dev/zero 2>>"$1/witness" && code=7 ;;
esac
echo "end $SALLYPORT_RUN $code" >>"$1/witness"
exit $code
`

const diskHooks = `
hooks:
  job:
    callers: [load]
    command: [DIR/job.sh, DIR, "{how}", "{n}"]
    params: {n: {from: body.n, type: int}, how: {from: body.how, enum: [quick, hold, write]}}
    flight: "{n}"
    output: {head: 1GiB} # so that nothing of it is freed
  queue:
    callers: [load]
    command: [DIR/job.sh, DIR, hold, "{n}"]
    params: {n: {from: body.n, type: int}}
    busy: {queue: 4}
`

// TestFullDisk fills the disk at each step of a run, and frees space again. It needs a disk that it may fill, so the
// test starts itself again in a mount namespace.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	const inside = "SALLYPORT_TEST_DISK"
	if os.Getenv(inside) != "" {
		fullDisk(t)
		return
	}
	if os.Geteuid() != 0 {
		// In a user namespace, / belongs to an unknown user, who might replace the program, so the server would refuse
		// to start.
		testenv.Skip(t, "a full disk: this user may not mount one")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFullDisk$", "-test.v", "-test.count=1")
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	switch {
	case cmd.Process == nil:
		testenv.Skip(t, "a full disk: this user may not create a namespace: "+err.Error())
	case bytes.Contains(out, []byte(noDisk)):
		testenv.Skip(t, "a full disk: this user may not mount one, even in a namespace")
	case err != nil || !bytes.Contains(out, []byte("--- PASS: TestFullDisk ")):
		t.Fatalf("%v\n%s", err, out)
	}
}

const noDisk = "no disk for this test"

// disk is an installation whose state folder is a small disk.
type disk struct {
	*installation
	n int // of deliveries
}

func fullDisk(t *testing.T) {
	t.Helper()
	d := &disk{installation: install(t, "sallyport", diskHooks)}
	d.write("job.sh", diskJob, 0o755)
	d.write("witness", "", 0o600)
	if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		t.Fatal(noDisk, err)
	}
	d.mount("state", diskSize)
	d.mount("state/audit", auditSize)
	d.start(true)
	d.testAuditLog()
	d.testBeforeAdmission()
	d.testQueuedRuns()
	d.testRunInProgress()
	d.testWithoutSupervisor()
	d.testAtStart()
	d.testReadOnly()
}

func (d *disk) mount(folder string, size int) {
	d.t.Helper()
	dir := filepath.Join(d.dir, folder)
	mustSucceed(d.t, os.Mkdir(dir, 0o700))
	if err := syscall.Mount("none", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", size)); err != nil {
		d.t.Fatal(noDisk, err)
	}
	d.t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
}

// fillerPath returns the path of the file that fills a disk.
func (d *disk) fillerPath(folder string) string { return filepath.Join(d.dir, folder, "filler") }

// fillDisk fills a disk to the last byte.
func (d *disk) fillDisk(folder string) {
	d.t.Helper()
	f, err := os.OpenFile(d.fillerPath(folder), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	mustSucceed(d.t, err)
	defer func() { _ = f.Close() }()
	if _, err := f.Write(make([]byte, diskSize)); !errors.Is(err, syscall.ENOSPC) {
		d.t.Fatalf("the disk is not full: %v", err)
	}
}

func (d *disk) freeDisk(folder string) {
	d.t.Helper()
	mustSucceed(d.t, os.Remove(d.fillerPath(folder)))
}

// newBody returns the body of a delivery with a new flight.
func (d *disk) newBody(how string) string {
	d.n++
	return fmt.Sprintf(`{"n": %d, "how": %q}`, d.n, how)
}

// awaitAccepted repeats a delivery until it is accepted and its run succeeds.
func (d *disk) awaitAccepted(body string) {
	d.t.Helper()
	d.waitUntil("a delivery to be accepted", func() bool {
		a := d.deliver("job", body, "Prefer: wait=60")
		return a.code == http.StatusOK && a.run().State == runner.Succeeded
	})
}

// checkRefused sends a delivery that is refused with this kind of problem, and returns the reason in the log.
func (d *disk) checkRefused(body, kind string) (reason string) {
	d.t.Helper()
	before := d.countBegun()
	a := d.deliver("job", body)
	if a.code != http.StatusServiceUnavailable || !bytes.Contains(a.body, []byte("urn:sallyport:"+kind)) || d.countBegun() != before {
		d.t.Fatalf("%s is answered with %d %s, want %s; %d commands began", body, a.code, a.body, kind, d.countBegun()-before)
	}
	line := `"request":"` + a.header.Get("X-Request-Id") + `"`
	d.awaitText(line)
	_, reason, _ = strings.Cut(string(d.read("log")), line)
	reason, _, _ = strings.Cut(reason, "\n")
	return reason
}

// countBegun returns how many commands began.
func (d *disk) countBegun() int { return bytes.Count(d.read("witness"), []byte("begin ")) }

// awaitWitness waits for a line in the witness file.
func (d *disk) awaitWitness(line string) {
	d.t.Helper()
	d.waitUntil("a command to witness "+line, func() bool { return bytes.Contains(d.read("witness"), []byte(line+"\n")) })
}

// awaitCheckpoint waits until SQLite has copied its write-ahead log into the database, as the index of the log shows
// (sqlite.org/walformat.html, 2.1). SQLite then writes the log from its beginning again, so that some more fits on a
// full disk.
func (d *disk) awaitCheckpoint() {
	d.t.Helper()
	d.waitUntil("the log to be copied", func() bool {
		index := d.read("state/state.db-shm")
		frames, copied := binary.NativeEndian.Uint32(index[16:]), binary.NativeEndian.Uint32(index[96:])
		return frames > 0 && frames == copied
	})
}

// leaveStoreSpace fills the disk except for the space that the write-ahead log already has, so that runs can be
// recorded and not started.
func (d *disk) leaveStoreSpace() {
	d.t.Helper()
	for range 8 {
		d.awaitAccepted(d.newBody("quick"))
	}
	d.awaitCheckpoint()
	d.fillDisk("state")
}

// fillStore sends deliveries until they can no longer be recorded. It returns their bodies, and the reason that the log
// has for the first one.
func (d *disk) fillStore() (refused []string, first string) {
	d.t.Helper()
	for last := ""; !strings.Contains(last, "the store cannot record: disk full: "); {
		d.fillDisk("state")
		refused = append(refused, d.newBody("quick"))
		if last = d.checkRefused(refused[len(refused)-1], "unavailable"); len(refused) > 1000 {
			d.t.Fatalf("runs can be recorded still: %s", last)
		}
		if first == "" {
			first = last
		}
	}
	return refused, first
}

// testAuditLog checks that a delivery is refused if its audit line cannot be written, and that runs in progress go on.
func (d *disk) testAuditLog() {
	hold := d.deliver("job", d.newBody("hold")).run()
	d.awaitWitness("begin " + hold.ID)
	d.fillDisk("state/audit")
	for range 100 { // lines that fit on the last page of its file
		if d.deliver("job", d.newBody("quick"), "Prefer: wait=60").code != http.StatusOK {
			break
		}
	}
	refused := d.newBody("quick")
	if reason := d.checkRefused(refused, "unavailable"); !strings.Contains(reason, "writing the audit log: ") {
		d.t.Errorf("the reason is %s", reason)
	}
	d.write("go", "", 0o600)
	d.awaitEnd(hold.ID, 7)
	d.freeDisk("state/audit")
	d.awaitAccepted(refused)
	mustSucceed(d.t, os.Remove(filepath.Join(d.dir, "go")))
}

// testBeforeAdmission checks that a delivery is refused if it cannot be recorded, or recorded and not started, and is
// accepted when it is repeated.
func (d *disk) testBeforeAdmission() {
	d.leaveStoreSpace()
	refused, first := d.fillStore()
	if !strings.Contains(first, "no space for a run: ") {
		d.t.Errorf("the first was not even recorded: %s", first)
	}
	before := d.countBegun()
	d.freeDisk("state")
	for _, body := range refused {
		d.awaitAccepted(body)
	}
	if n := d.countBegun() - before; n != len(refused) {
		d.t.Errorf("%d deliveries were refused, and led to %d runs when they came again", len(refused), n)
	}
}

// testQueuedRuns checks that a full disk does not fail queued runs.
func (d *disk) testQueuedRuns() {
	var runs []runner.Run
	for range 3 {
		runs = append(runs, d.deliver("queue", d.newBody("hold")).run())
	}
	d.leaveStoreSpace()
	d.write("go", "", 0o600)
	d.awaitText(`"msg":"run stays queued: its command cannot be started yet; it is tried again","run":"` + runs[1].ID)
	d.freeDisk("state")
	for _, run := range runs {
		d.awaitEnd(run.ID, 7)
	}
	mustSucceed(d.t, os.Remove(filepath.Join(d.dir, "go")))
}

// awaitEnd waits for the end of a run that began once, and checks its exit code.
func (d *disk) awaitEnd(id string, code int) (r runner.Run) {
	d.t.Helper()
	d.waitUntil("the end of a run", func() bool {
		r = d.sendRequest(d.t.Context(), http.MethodGet, "/runs/"+id, "").run()
		return r.State.Ended()
	})
	if r.State != runner.Failed || r.ExitCode == nil || *r.ExitCode != code || r.Signal != "" || r.Error != "" {
		d.t.Errorf("run %+v, want exit code %d", r, code)
	}
	if n := bytes.Count(d.read("witness"), []byte("begin "+id)); n != 1 {
		d.t.Errorf("run %s began %d times", id, n)
	}
	d.waitUntil("the end of run "+id+" to be written", func() bool {
		var s rundir.Status
		mustSucceed(d.t, json.Unmarshal(d.read("state/runs/"+id+"/status"), &s))
		return !s.Ended.IsZero() && *s.ExitCode == code
	})
	if kept, err := output.Open(filepath.Join(d.dir, "state/runs"), id); err != nil {
		d.t.Error(err)
	} else if size, dropped := kept.State(); size != r.Output.Bytes || dropped.Bytes() != r.Output.Dropped {
		d.t.Errorf("output of %d bytes without %+v, and recorded is %+v", size, dropped, r.Output)
	} else {
		mustSucceed(d.t, kept.Close())
	}
	return r
}

// testRunInProgress checks that a command goes on without its output when the disk is full, and that an end that cannot
// be written is not lost, nor the runs queued behind it, even if another server starts in between.
func (d *disk) testRunInProgress() {
	mustSucceed(d.t, os.WriteFile(d.fillerPath("state"), make([]byte, diskSize/3), 0o600)) // to be freed later
	holding := d.newBody("hold")
	hold, first := d.deliver("job", holding).run(), d.deliver("queue", d.newBody("hold")).run()
	second, write := d.deliver("queue", d.newBody("hold")).run(), d.deliver("job", d.newBody("write")).run()
	d.awaitWitness("end " + write.ID + " 7")
	for _, run := range []runner.Run{hold, first} {
		d.awaitWitness("begin " + run.ID)
	}
	d.fillStore()
	d.write("go", "", 0o600)
	for _, run := range []runner.Run{write, hold, first} {
		d.awaitText(`"msg":"recording the end of a run; it will be tried again","run":"` + run.ID)
	}
	for _, run := range []runner.Run{hold, first} {
		d.awaitText(`"msg":"run not recorded","run":"` + run.ID)
		if a := d.sendRequest(d.t.Context(), http.MethodGet, "/runs/"+run.ID, ""); a.run().State != runner.Running {
			d.t.Errorf("nothing can be recorded, and the record says %s", a.body)
		}
	}
	d.checkRefused(strings.Replace(holding, "hold", "quick", 1), "busy")
	d.killServer()
	d.fillDisk("state")
	d.start(true)
	d.checkRefused(strings.Replace(holding, "hold", "quick", 1), "busy")
	d.freeDisk("state")
	if r := d.awaitEnd(write.ID, 7); r.Output.Bytes != diskOutput || r.Output.Dropped == 0 {
		d.t.Errorf("output %+v on a disk that was full", r.Output)
	}
	for _, run := range []runner.Run{hold, first, second} {
		d.awaitEnd(run.ID, 7)
	}
	d.awaitAccepted(d.newBody("quick"))
	mustSucceed(d.t, os.Remove(filepath.Join(d.dir, "go")))
}

// testWithoutSupervisor checks that a supervisor that cannot be restarted is started when there is space, and that its
// commands are not forgotten.
func (d *disk) testWithoutSupervisor() {
	hold := d.deliver("job", d.newBody("hold")).run()
	d.awaitWitness("begin " + hold.ID)
	d.fillDisk("state")
	mustSucceed(d.t, syscall.Kill(d.supervisor(), syscall.SIGKILL))
	d.awaitText("making the secret: ")
	d.checkRefused(d.newBody("quick"), "unavailable")
	d.freeDisk("state")
	d.awaitAccepted(d.newBody("quick"))
	d.write("go", "", 0o600)
	d.awaitWitness("end " + hold.ID + " 7")
	d.waitUntil("the end of a run", func() bool {
		return d.sendRequest(d.t.Context(), http.MethodGet, "/runs/"+hold.ID, "").run().State == runner.Interrupted
	})
}

// testAtStart checks that a server that cannot create what it needs says why, and ends.
func (d *disk) testAtStart() {
	d.endServer()
	d.fillDisk("state")
	d.start(false)
	<-d.ended
	if d.server.ProcessState.ExitCode() != 1 {
		d.t.Errorf("the server ended with %v", d.server.ProcessState)
	}
	d.awaitText("sallyport: opening " + filepath.Join(d.dir, "state/state.db") + ": the store cannot record: disk full: ")
	d.freeDisk("state")
	d.start(true)
	d.awaitAccepted(d.newBody("quick"))
}

// testReadOnly checks that a read-only disk, as after an I/O error, is reported like a full one.
func (d *disk) testReadOnly() {
	d.endServer()
	state := filepath.Join(d.dir, "state")
	d.waitUntil("the supervisor to let go of the disk", func() bool {
		return syscall.Mount("none", state, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, "") == nil
	})
	d.start(false)
	<-d.ended
	if d.server.ProcessState.ExitCode() != 1 {
		d.t.Errorf("the server ended with %v", d.server.ProcessState)
	}
	d.awaitText("read-only file system")
	mustSucceed(d.t, syscall.Mount("none", state, "", syscall.MS_REMOUNT, ""))
	d.start(true)
	d.awaitAccepted(d.newBody("quick"))
}
