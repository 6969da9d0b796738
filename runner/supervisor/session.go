package supervisor

import (
	"bufio"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"sallyport/runner/process/proctree"
	"sallyport/runner/process/rundir"
)

// sessions has the session that is served.
type sessions struct {
	attend func(bool) // called when the first session begins, and when the last one has ended

	mu         sync.Mutex // held while a session waits for the end of the earlier one
	current    *session
	superseded map[string]bool // the clients that another client has replaced
}

// served returns the session that is served, or nil.
func (t *sessions) served() *session {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.current
}

// checkSuperseded returns ErrSuperseded if another client has replaced the client.
func (t *sessions) checkSuperseded(client string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.superseded[client] {
		return ErrSuperseded
	}
	return nil
}

// admit makes s the session that is served. It first waits until each request of the earlier session has been carried
// out or never will be, so that s sees the result.
func (t *sessions) admit(s *session, unlessGoing func(func() error) error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.superseded[s.client] {
		return ErrSuperseded
	}
	if old := t.current; old != nil {
		if old.client != s.client {
			t.superseded[old.client] = true
		}
		_ = old.conn.Close()
		<-old.done
	}
	return unlessGoing(func() error {
		t.current = s
		t.attend(true)
		return nil
	})
}

// dismiss removes a session that is over.
func (t *sessions) dismiss(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.current == s {
		t.current = nil
		t.attend(false)
	}
}

// acceptServers greets each peer. It serves only one server: a later one has replaced the earlier one.
func (v *supervisor) acceptServers(l *net.UnixListener) {
	for {
		conn, err := l.AcceptUnix()
		switch {
		case err == nil:
			go v.greetPeer(conn)
		case errors.Is(err, net.ErrClosed):
			return
		default:
			v.Log.Error("accepting a server", "error", err)
			<-time.After(100 * time.Millisecond)
		}
	}
}

// greetPeer serves a connection if the peer is a server.
func (v *supervisor) greetPeer(conn *net.UnixConn) {
	s := &session{v: v, conn: conn, gone: make(chan struct{}), done: make(chan struct{})}
	r := bufio.NewReaderSize(conn, maxGreeting)
	pid, err := checkPeer(conn, v.uid)
	if err == nil && pid > 0 {
		err = proctree.CheckStranger(pid, os.Getpid(), v.local.HasFolder)
	}
	err = errors.Join(err, conn.SetDeadline(time.Now().Add(greetingTime)))
	var h hello
	if err == nil {
		err = readGreeting(r, &h)
	}
	if err == nil && subtle.ConstantTimeCompare(h.Secret, v.entrance.secret) != 1 {
		err = errors.New("the secret is wrong")
	}
	if err != nil {
		v.Log.Warn("refusing a connection", "error", err)
		_ = conn.Close()
		return
	}
	s.client = h.Client
	if h.Probe {
		err = v.sessions.checkSuperseded(h.Client) // a probe sends no requests
		_ = writeLine(conn, welcome{PID: os.Getpid(), Version: v.Version, Fault: newFault(err)}, nil)
		_ = conn.Close()
		return
	}
	err = v.sessions.admit(s, v.unlessGoing)
	w := welcome{PID: os.Getpid(), Version: v.Version, Fault: newFault(err)}
	if err := errors.Join(writeLine(conn, w, nil), conn.SetDeadline(time.Time{}), err); err != nil {
		v.Log.Warn("refusing a server", "error", err)
		_ = conn.Close() // this ends serveRequests
	}
	if err == nil {
		s.serveRequests(r)
	}
}

// session is a connection of a server.
type session struct {
	v      *supervisor
	conn   *net.UnixConn
	client string
	gone   chan struct{} // closed when no more requests arrive
	done   chan struct{} // closed when all requests were carried out
}

func (s *session) serveRequests(r *bufio.Reader) {
	answers, written := make(chan *reply), make(chan struct{})
	go func() {
		defer close(written)
		s.writeAnswers(answers)
	}()
	var calls sync.WaitGroup
	for {
		q, err := readRequest(r)
		if err != nil {
			break
		}
		calls.Go(func() {
			p := s.answerRequest(q)
			p.ID = q.ID
			answers <- p
		})
	}
	close(s.gone)
	calls.Wait()
	close(answers)
	<-written
	_ = s.conn.Close()
	close(s.done)
	s.v.sessions.dismiss(s)
}

// writeAnswers sends each answer, one at a time.
func (s *session) writeAnswers(answers <-chan *reply) {
	for p := range answers {
		if err := writeLine(s.conn, p, nil); err != nil {
			_ = s.conn.Close() // the server sends the request again on another connection
		}
	}
}

func (s *session) answerRequest(q *request) *reply {
	p := new(reply)
	l := s.v.local
	var err error
	switch q.Do {
	case doStart:
		err = s.v.startRun(q.Order, q.Again)
		if errors.Is(err, rundir.ErrFolderGone) && s.v.refuseMoreRuns() == nil { // the next supervisor makes the folder
			close(s.v.quit)
		}
	case doStop:
		err = l.Stop(q.Run, q.Why, q.Grace)
	case doKnown:
		err = l.Find(q.Run)
	case doWait:
		err = s.waitEnd(q.Run, p)
	case doList:
		p.Runs, err = l.List()
	case doReload:
		p.Digest, err = s.v.hooks.reload(q.InForce)
	case doReplace:
		err = s.v.replaceImage(q.Exe)
	case doQuit:
		if err = s.v.refuseMoreRuns(); err == nil {
			close(s.v.quit)
		}
	default:
		err = fmt.Errorf("unknown request %q", q.Do)
	}
	p.Fault = newFault(err)
	return p
}

// waitEnd waits for the end of a run, or of the connection.
func (s *session) waitEnd(run string, p *reply) error {
	ended, end, err := s.v.local.AwaitRun(run)
	if err != nil {
		return err
	}
	select {
	case <-ended:
	case <-s.gone:
		select {
		case <-ended: // an end that is available already is still sent
		default:
			return context.Canceled
		}
	}
	e := end()
	p.End, p.Why = &e, e.Reason
	return nil
}
