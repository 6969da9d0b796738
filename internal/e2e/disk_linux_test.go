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

const noDisk = "no disk of its own"

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
	d.audit()
	d.beforeAdmission()
	d.inTheQueue()
	d.underWay()
	d.withoutSupervisor()
	d.atTheStart()
	d.readOnly()
}

func (d *disk) mount(folder string, size int) {
	d.t.Helper()
	dir := filepath.Join(d.dir, folder)
	check(d.t, os.Mkdir(dir, 0o700))
	if err := syscall.Mount("none", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", size)); err != nil {
		d.t.Fatal(noDisk, err)
	}
	d.t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
}

// filler returns the path of the file that fills a disk.
func (d *disk) filler(folder string) string { return filepath.Join(d.dir, folder, "filler") }

// fill fills a disk to the last byte.
func (d *disk) fill(folder string) {
	d.t.Helper()
	f, err := os.OpenFile(d.filler(folder), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	check(d.t, err)
	defer func() { _ = f.Close() }()
	if _, err := f.Write(make([]byte, diskSize)); !errors.Is(err, syscall.ENOSPC) {
		d.t.Fatalf("the disk is not full: %v", err)
	}
}

func (d *disk) free(folder string) {
	d.t.Helper()
	check(d.t, os.Remove(d.filler(folder)))
}

// body returns the body of a delivery with a new flight.
func (d *disk) body(how string) string {
	d.n++
	return fmt.Sprintf(`{"n": %d, "how": %q}`, d.n, how)
}

// taken repeats a delivery until it is accepted and its run succeeds.
func (d *disk) taken(body string) {
	d.t.Helper()
	d.until("a delivery to be accepted", func() bool {
		a := d.deliver("job", body, "Prefer: wait=60")
		return a.code == http.StatusOK && a.run().State == runner.Succeeded
	})
}

// turnedAway sends a delivery that is refused with this kind of problem, and returns the reason in the log.
func (d *disk) turnedAway(body, kind string) (reason string) {
	d.t.Helper()
	before := d.begun()
	a := d.deliver("job", body)
	if a.code != http.StatusServiceUnavailable || !bytes.Contains(a.body, []byte("urn:sallyport:"+kind)) || d.begun() != before {
		d.t.Fatalf("%s is answered with %d %s, want %s; %d commands began", body, a.code, a.body, kind, d.begun()-before)
	}
	line := `"request":"` + a.header.Get("X-Request-Id") + `"`
	d.said(line)
	_, reason, _ = strings.Cut(string(d.read("log")), line)
	reason, _, _ = strings.Cut(reason, "\n")
	return reason
}

// begun returns how many commands began.
func (d *disk) begun() int { return bytes.Count(d.read("witness"), []byte("begin ")) }

// witnessed waits for a line in the witness file.
func (d *disk) witnessed(line string) {
	d.t.Helper()
	d.until("a command to witness "+line, func() bool { return bytes.Contains(d.read("witness"), []byte(line+"\n")) })
}

// copied waits until SQLite has copied its write-ahead log into the database, as the index of the log shows
// (sqlite.org/walformat.html, 2.1). SQLite then writes the log from its beginning again, so that some more fits on a
// full disk.
func (d *disk) copied() {
	d.t.Helper()
	d.until("the log to be copied", func() bool {
		index := d.read("state/state.db-shm")
		frames, copied := binary.NativeEndian.Uint32(index[16:]), binary.NativeEndian.Uint32(index[96:])
		return frames > 0 && frames == copied
	})
}

// onlyTheRecord fills the disk except for the space that the write-ahead log already has, so that runs can be recorded
// and not started.
func (d *disk) onlyTheRecord() {
	d.t.Helper()
	for range 8 {
		d.taken(d.body("quick"))
	}
	d.copied()
	d.fill("state")
}

// exhaust sends deliveries until they can no longer be recorded. It returns their bodies, and the reason that the log
// has for the first one.
func (d *disk) exhaust() (refused []string, first string) {
	d.t.Helper()
	for last := ""; !strings.Contains(last, "the store cannot record: disk full: "); {
		d.fill("state")
		refused = append(refused, d.body("quick"))
		if last = d.turnedAway(refused[len(refused)-1], "unavailable"); len(refused) > 1000 {
			d.t.Fatalf("runs can be recorded still: %s", last)
		}
		if first == "" {
			first = last
		}
	}
	return refused, first
}

// audit checks that a delivery is refused if its audit line cannot be written, and that runs in progress go on.
func (d *disk) audit() {
	hold := d.deliver("job", d.body("hold")).run()
	d.witnessed("begin " + hold.ID)
	d.fill("state/audit")
	for range 100 { // lines that fit on the last page of its file
		if d.deliver("job", d.body("quick"), "Prefer: wait=60").code != http.StatusOK {
			break
		}
	}
	refused := d.body("quick")
	if reason := d.turnedAway(refused, "unavailable"); !strings.Contains(reason, "writing the audit log: ") {
		d.t.Errorf("the reason is %s", reason)
	}
	d.write("go", "", 0o600)
	d.ends(hold.ID, 7)
	d.free("state/audit")
	d.taken(refused)
	check(d.t, os.Remove(filepath.Join(d.dir, "go")))
}

// beforeAdmission checks that a delivery is refused if it cannot be recorded, or recorded and not started, and is
// accepted when it is repeated.
func (d *disk) beforeAdmission() {
	d.onlyTheRecord()
	refused, first := d.exhaust()
	if !strings.Contains(first, "no space for a run: ") {
		d.t.Errorf("the first was not even recorded: %s", first)
	}
	before := d.begun()
	d.free("state")
	for _, body := range refused {
		d.taken(body)
	}
	if n := d.begun() - before; n != len(refused) {
		d.t.Errorf("%d deliveries were refused, and led to %d runs when they came again", len(refused), n)
	}
}

// inTheQueue checks that a full disk does not fail queued runs.
func (d *disk) inTheQueue() {
	var runs []runner.Run
	for range 3 {
		runs = append(runs, d.deliver("queue", d.body("hold")).run())
	}
	d.onlyTheRecord()
	d.write("go", "", 0o600)
	d.said(`"msg":"run stays queued: its command cannot be started yet; it is tried again","run":"` + runs[1].ID)
	d.free("state")
	for _, run := range runs {
		d.ends(run.ID, 7)
	}
	check(d.t, os.Remove(filepath.Join(d.dir, "go")))
}

// ends waits for the end of a run that began once, and checks its exit code.
func (d *disk) ends(id string, code int) (r runner.Run) {
	d.t.Helper()
	d.until("the end of a run", func() bool {
		r = d.ask(d.t.Context(), http.MethodGet, "/runs/"+id, "").run()
		return r.State.Ended()
	})
	if r.State != runner.Failed || r.ExitCode == nil || *r.ExitCode != code || r.Signal != "" || r.Error != "" {
		d.t.Errorf("run %+v, want exit code %d", r, code)
	}
	if n := bytes.Count(d.read("witness"), []byte("begin "+id)); n != 1 {
		d.t.Errorf("run %s began %d times", id, n)
	}
	d.until("the end of run "+id+" to be written", func() bool {
		var s rundir.Status
		check(d.t, json.Unmarshal(d.read("state/runs/"+id+"/status"), &s))
		return !s.Ended.IsZero() && *s.ExitCode == code
	})
	if kept, err := output.Open(filepath.Join(d.dir, "state/runs"), id); err != nil {
		d.t.Error(err)
	} else if size, dropped := kept.State(); size != r.Output.Bytes || dropped.Bytes() != r.Output.Dropped {
		d.t.Errorf("output of %d bytes without %+v, and recorded is %+v", size, dropped, r.Output)
	} else {
		check(d.t, kept.Close())
	}
	return r
}

// underWay checks that a command goes on without its output when the disk is full, and that an end that cannot be
// written is not lost, nor the runs queued behind it, even if another server starts meanwhile.
func (d *disk) underWay() {
	check(d.t, os.WriteFile(d.filler("state"), make([]byte, diskSize/3), 0o600)) // to be freed later
	holding := d.body("hold")
	hold, first := d.deliver("job", holding).run(), d.deliver("queue", d.body("hold")).run()
	second, write := d.deliver("queue", d.body("hold")).run(), d.deliver("job", d.body("write")).run()
	d.witnessed("end " + write.ID + " 7")
	for _, run := range []runner.Run{hold, first} {
		d.witnessed("begin " + run.ID)
	}
	d.exhaust()
	d.write("go", "", 0o600)
	for _, run := range []runner.Run{write, hold, first} {
		d.said(`"msg":"recording the end of a run; it will be tried again","run":"` + run.ID)
	}
	for _, run := range []runner.Run{hold, first} {
		d.said(`"msg":"run not recorded","run":"` + run.ID)
		if a := d.ask(d.t.Context(), http.MethodGet, "/runs/"+run.ID, ""); a.run().State != runner.Running {
			d.t.Errorf("nothing can be recorded, and the record says %s", a.body)
		}
	}
	d.turnedAway(strings.Replace(holding, "hold", "quick", 1), "busy")
	d.kill()
	d.fill("state")
	d.start(true)
	d.turnedAway(strings.Replace(holding, "hold", "quick", 1), "busy")
	d.free("state")
	if r := d.ends(write.ID, 7); r.Output.Bytes != diskOutput || r.Output.Dropped == 0 {
		d.t.Errorf("output %+v on a disk that was full", r.Output)
	}
	for _, run := range []runner.Run{hold, first, second} {
		d.ends(run.ID, 7)
	}
	d.taken(d.body("quick"))
	check(d.t, os.Remove(filepath.Join(d.dir, "go")))
}

// withoutSupervisor checks that a supervisor that cannot be restarted is started when there is space, and that its
// commands are not forgotten.
func (d *disk) withoutSupervisor() {
	hold := d.deliver("job", d.body("hold")).run()
	d.witnessed("begin " + hold.ID)
	d.fill("state")
	check(d.t, syscall.Kill(d.supervisor(), syscall.SIGKILL))
	d.said("making the secret: ")
	d.turnedAway(d.body("quick"), "unavailable")
	d.free("state")
	d.taken(d.body("quick"))
	d.write("go", "", 0o600)
	d.witnessed("end " + hold.ID + " 7")
	d.until("the end of a run", func() bool {
		return d.ask(d.t.Context(), http.MethodGet, "/runs/"+hold.ID, "").run().State == runner.Interrupted
	})
}

// atTheStart checks that a server that cannot create what it needs says why, and ends.
func (d *disk) atTheStart() {
	d.end()
	d.fill("state")
	d.start(false)
	<-d.ended
	if d.server.ProcessState.ExitCode() != 1 {
		d.t.Errorf("the server ended with %v", d.server.ProcessState)
	}
	d.said("sallyport: opening " + filepath.Join(d.dir, "state/state.db") + ": the store cannot record: disk full: ")
	d.free("state")
	d.start(true)
	d.taken(d.body("quick"))
}

// readOnly checks that a read-only disk, as after an I/O error, is reported like a full one.
func (d *disk) readOnly() {
	d.end()
	state := filepath.Join(d.dir, "state")
	d.until("the supervisor to let go of the disk", func() bool {
		return syscall.Mount("none", state, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, "") == nil
	})
	d.start(false)
	<-d.ended
	if d.server.ProcessState.ExitCode() != 1 {
		d.t.Errorf("the server ended with %v", d.server.ProcessState)
	}
	d.said("read-only file system")
	check(d.t, syscall.Mount("none", state, "", syscall.MS_REMOUNT, ""))
	d.start(true)
	d.taken(d.body("quick"))
}
