package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"

	"sallyport/internal/config"
)

// A server hands its listener over to its successor, so that no connection is refused during an upgrade of the program.
// The successor is started with the listener and a pipe. It checks what it can while the predecessor still serves, and
// reports over the pipe that it is ready. Only then does the predecessor stop accepting, finish its answers and release
// the state folder. Connections that arrive after that wait in the queue of the listener. The predecessor stays until
// the successor reports that it serves. If the successor ends before that, the predecessor opens the state folder again
// and serves.

// HandoverEnv is set for a server that is started by its predecessor.
const HandoverEnv = "SALLYPORT_HANDOVER"

// The descriptors of a server that is started by its predecessor.
const (
	inheritedListener = 3
	inheritedPipe     = 4
)

const (
	answersWithin = 5 * time.Second // for the supervisor
	readyWithin   = 20 * time.Second
	lateAfter     = 5 * time.Second // the log says then what the wait is for
	stacksWithin  = time.Second
	servesWithin  = 5 * time.Minute // the successor may check or migrate a database first
)

// Predecessor is the server that started this one, and waits for two signals from it.
type Predecessor struct{ pipe *os.File }

// Ready signals the predecessor to release what only one server may hold at a time.
func (b *Predecessor) Ready() error {
	if _, err := b.pipe.Write([]byte{1}); err != nil {
		return fmt.Errorf("signalling the predecessor: %w", err)
	}
	return nil
}

// Serves signals the predecessor to end.
func (b *Predecessor) Serves() {
	_, _ = b.pipe.Write([]byte{2}) // the predecessor may have ended already
	_ = b.pipe.Close()
}

// InheritListener returns the listener from the predecessor or from systemd, or else opens one. The predecessor is nil
// if this server was not started by one.
func InheritListener(ctx context.Context, c *config.Config, handedOver bool) (
	l net.Listener, predecessor *Predecessor, err error,
) {
	if handedOver {
		syscall.CloseOnExec(inheritedPipe) // commands must not inherit it
		l, err = net.FileListener(os.NewFile(inheritedListener, "listener"))
		return l, &Predecessor{os.NewFile(inheritedPipe, "server before")}, err
	}
	passed, err := activation.Listeners() // from systemd's LISTEN_FDS
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("taking the socket from systemd: %w", err)
	case len(passed) > 1 || len(passed) == 1 && passed[0] == nil:
		return nil, nil, errors.New("expected exactly one listening socket from systemd")
	case len(passed) == 1:
		return passed[0], nil, nil
	}
	l, err = openListener(ctx, c.Listen)
	return l, nil, err
}

// NotifyReady reports to a service manager that this process serves now, and is the main process. Without a service
// manager it does nothing.
func NotifyReady() error {
	_, err := daemon.SdNotify(false, fmt.Sprintf("%s\nMAINPID=%d", daemon.SdNotifyReady, os.Getpid()))
	return err
}

// handOver starts the successor and returns it when it is ready. Otherwise the error has the reason.
func (s *Server) handOver() (*Successor, error) {
	soon, stop := context.WithTimeout(context.Background(), answersWithin)
	defer stop()
	if !s.runner.Answers(soon) {
		return nil, errors.New("the supervisor does not answer, so the next server could not start")
	}
	tcp, ok := s.raw.(*net.TCPListener)
	if !ok {
		return nil, errors.New("the listener cannot be handed over")
	}
	listener, err := tcp.File() // a duplicate
	if err != nil {
		return nil, err
	}
	told, tell, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	n := &Successor{listener: listener, told: told, log: s.log}
	n.server, err = s.next(listener, tell)
	_ = tell.Close() // the successor has its own descriptor
	if err == nil {
		err = n.awaitReady()
	}
	if err != nil {
		return nil, errors.Join(err, n.closeFiles())
	}
	return n, nil
}

// Successor is the server that replaces this one.
type Successor struct {
	server   *NextProcess
	listener *os.File // for this server, if the successor fails
	told     *os.File
	log      *slog.Logger
}

func (n *Successor) closeFiles() error { return errors.Join(n.listener.Close(), n.told.Close()) }

func (n *Successor) awaitReady() error {
	late := time.AfterFunc(lateAfter, func() {
		n.log.Warn("the next server is not ready yet: it reads the configuration and checks the audit log",
			"pid", n.server.Pid, "waits_for", readyWithin.String())
	})
	defer late.Stop()
	err := n.told.SetReadDeadline(time.Now().Add(readyWithin))
	if err == nil {
		_, err = n.told.Read(make([]byte, 1))
	}
	if err != nil {
		n.endUnready(err)
		return fmt.Errorf("the next server did not get ready: %w", err)
	}
	return n.told.SetReadDeadline(time.Time{})
}

// endUnready ends a successor that did not get ready. One that is alive first prints its stacks, which show what it
// waited for.
func (n *Successor) endUnready(reason error) {
	if errors.Is(reason, os.ErrDeadlineExceeded) {
		_ = n.server.Signal(syscall.SIGQUIT) // it may have ended already
		select {
		case <-n.server.Ended:
		case <-time.After(stacksWithin):
		}
	}
	_ = n.server.Kill()
}

// Await returns when the successor serves. It passes a stop on to a successor that does not serve
// yet. If the successor has ended instead, and released everything, Await returns the listener to
// continue with, and the reason.
func (n *Successor) Await(stop <-chan struct{}) (back net.Listener, why error) {
	if why = n.awaitServing(stop); why == nil {
		// The service manager may accept notifications of the main process only, which is this one until now.
		if _, err := daemon.SdNotify(false, fmt.Sprintf("MAINPID=%d", n.server.Pid)); err != nil {
			n.log.Warn("cannot notify the service manager", "error", err)
		}
		n.log.Info("handed over")
		return nil, n.closeFiles()
	}
	back, err := net.FileListener(n.listener)
	return back, errors.Join(why, err, n.closeFiles())
}

func (n *Successor) awaitServing(stop <-chan struct{}) error {
	word := make(chan error, 1)
	go func() {
		_, err := n.told.Read(make([]byte, 1))
		word <- err
	}()
	late := time.After(servesWithin)
	for {
		select {
		case err := <-word:
			if err == nil {
				return nil
			}
			word = nil // the successor is about to end
		case <-n.server.Ended:
			return errors.New("the next server ended before it served")
		case <-stop:
			stop = nil
			_ = n.server.Signal(syscall.SIGTERM) // it may have ended already
		case <-late:
			_ = n.server.Kill() // it may have ended already
		}
	}
}
