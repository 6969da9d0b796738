package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"

	"sallyport/internal/config"
)

// A server hands its listener over to the next one, so that no connection is
// refused while the program is upgraded: the next one is started with the
// listener and a pipe, checks its configuration, and says over the pipe that it
// is ready. Only then does the old one stop accepting, finish its answers and
// let the state folder go. What comes in between waits in the listener's queue.

// HandoverEnv is set for a server that is started by the one before it.
const HandoverEnv = "SALLYPORT_HANDOVER"

// The descriptors of a server that is started by the one before it.
const (
	inheritedListener = 3
	inheritedReady    = 4
)

const (
	answersWithin = 5 * time.Second // the supervisor
	readyWithin   = 30 * time.Second
)

// Inherited returns the listener that the server before this one, or systemd,
// hands to this process, or opens one. ready tells the server before this one
// to let go; it is nil without one.
func Inherited(ctx context.Context, c *config.Config, handedOver bool) (l net.Listener, ready func() error, err error) {
	if handedOver {
		l, err = net.FileListener(os.NewFile(inheritedListener, "listener"))
		pipe := os.NewFile(inheritedReady, "ready")
		return l, func() error {
			_, err := pipe.Write([]byte{1})
			return errors.Join(err, pipe.Close())
		}, err
	}
	passed, err := activation.Listeners() // by systemd's LISTEN_FDS
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("taking the socket from systemd: %w", err)
	case len(passed) > 1 || len(passed) == 1 && passed[0] == nil:
		return nil, nil, errors.New("systemd passes something other than one listening socket")
	case len(passed) == 1:
		return passed[0], nil, nil
	}
	l, err = new(net.ListenConfig).Listen(ctx, "tcp", c.Listen)
	return l, nil, err
}

// Notify tells a service manager that this process serves now, and is the
// main one. Without a manager that listens it does nothing.
func Notify() error {
	_, err := daemon.SdNotify(false, fmt.Sprintf("%s\nMAINPID=%d", daemon.SdNotifyReady, os.Getpid()))
	return err
}

// handOver starts the next server and returns when that is ready, or why it
// is not.
func (s *Server) handOver() error {
	soon, stop := context.WithTimeout(context.Background(), answersWithin)
	defer stop()
	if !s.runner.Answers(soon) {
		return errors.New("the supervisor does not answer, and the next server would wait for it in vain")
	}
	tcp, ok := s.raw.(*net.TCPListener)
	if !ok {
		return errors.New("the listener cannot be handed over")
	}
	listener, err := tcp.File()
	if err != nil {
		return err
	}
	defer func() { _ = listener.Close() }() // a copy
	told, tell, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = told.Close() }()
	err = s.next(listener, tell)
	_ = tell.Close() // the next server has its own
	if err != nil {
		return err
	}
	if err := told.SetReadDeadline(time.Now().Add(readyWithin)); err != nil {
		return err
	}
	if n, err := told.Read(make([]byte, 1)); n == 0 {
		return fmt.Errorf("the next server did not get ready: %w", err)
	}
	return nil
}
