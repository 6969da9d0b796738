package process

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
	"time"

	"sallyport/internal/boot"
	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/process/output"
	"sallyport/runner/process/rundir"
)

// prepareFolder makes the folder of a run, and opens the standard input of its command. If the folders that belong to
// no run were removed, it makes them again.
func (a *active) prepareFolder(h *hook.Hook, o runner.Order) (*rundir.Folder, *os.File, error) {
	l := a.local
	f, stdin, err := moveFolderIn(l.ready, &a.status, h, o)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, stdin, err
	}
	if err := l.ready.Restore(l.active.listIDs()); err != nil {
		return nil, nil, err
	}
	return moveFolderIn(l.ready, &a.status, h, o)
}

func moveFolderIn(
	ready *rundir.ReadyFolders, s *rundir.Status, h *hook.Hook, o runner.Order,
) (*rundir.Folder, *os.File, error) {
	f, err := ready.Take()
	if err != nil {
		return nil, nil, err
	}
	stdin, err := openStdin(f.Root, h, o)
	if err == nil {
		err = f.MoveIn(s)
	}
	if err != nil {
		rundir.CloseFiles(stdin)
		f.Discard()
		return nil, nil, err
	}
	return f, stdin, nil
}

// undoStart removes the folder of a run after its command could not be started, so that the same run may be started
// later. If the removal fails, the run is over.
func (a *active) undoStart(reason error) {
	l, run := a.local, a.status.Run
	if err := l.runs.RemoveRun(run); err != nil {
		l.log.Error("removing the folder of a run that could not be started", "run", run, "error", err)
		a.status.Started = time.Time{}
		a.status.End = runner.End{Ended: time.Now(), Error: systemCause(reason)}
		a.concludeRun()
		return
	}
	l.ends.releaseFlight(run)
}

// systemCause returns the system's message for an error without the paths around it, because callers may read it.
func systemCause(err error) string {
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		return errno.Error()
	}
	return "the run could not be prepared"
}

// startFollowed starts the command, and a goroutine that follows it.
func (a *active) startFollowed(f *rundir.Folder, h *hook.Hook, argv []string, stdin *os.File, o runner.Order) error {
	l := a.local
	if err := shareFiles(h, stdin, f.Command); err != nil {
		return err
	}
	err := a.startCommand(h, argv, commandEnvironment(l.loginOf(h), h, o), stdin, f.Command, f.Lock)
	rundir.CloseFiles(f.Command, f.Lock) // from here on only the processes of the command hold the lock
	f.Command, f.Lock = nil, nil
	if err != nil {
		return err
	}
	a.output = output.Collect(l.runs, l.log, f, &a.status)
	a.status.Started, a.status.Up = time.Now(), boot.Uptime()
	l.active.addRun(a)
	go a.followToEnd()
	return nil
}

// shareFiles lets the user of a hook open its standard input and output again, as /dev/stdin and /dev/stderr do. Both are
// files of the supervisor's user that no other user can reach: one has no name, the other is in a private folder.
func shareFiles(h *hook.Hook, stdin, output *os.File) error {
	if h.User == nil {
		return nil
	}
	if h.StdinBody {
		if err := stdin.Chmod(0o644); err != nil {
			return err
		}
	}
	return output.Chmod(0o666)
}
