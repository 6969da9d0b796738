package supervisor

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"sallyport/runner"
)

// What the server and the supervisor say to one another: first a line each to
// greet, then requests and replies in any order, a line of JSON each. A
// request may be followed by the bytes for stdin.

// The names in the state folder.
const (
	runsDir    = "runs"
	socketFile = "supervisor.sock"
	secretFile = "supervisor.secret"
	mutexFile  = "supervisor.lock" // flock'd by the one supervisor, and before by whoever starts it
)

// The descriptors that a supervisor inherits.
const (
	socketFD = 3
	mutexFD  = 4
)

const (
	secretBytes  = 32
	maxGreeting  = 4 << 10
	greetingTime = 5 * time.Second
	maxStdin     = 1 << 30 // the most that a hook's body.max may be
)

// hello is what a server says first.
type hello struct {
	Secret []byte `json:"secret"`
	Client string `json:"client"`          // a new random word for each Client
	Probe  bool   `json:"probe,omitempty"` // whether another server has taken over is all that is asked
}

// welcome is what the supervisor answers.
type welcome struct {
	PID     int    `json:"pid"`
	Version string `json:"version"`
	Fault   *fault `json:"fault,omitempty"`
}

// verb is what a request asks for. A supervisor may be of another version than
// the server: none ever changes its meaning.
type verb string

const (
	doStart   verb = "start"
	doStop    verb = "stop"
	doKnown   verb = "known"
	doWait    verb = "wait"
	doList    verb = "list"
	doReload  verb = "reload"
	doReplace verb = "replace"
	doQuit    verb = "quit"
)

type request struct {
	ID    uint64        `json:"id"`
	Do    verb          `json:"do"`
	Run   string        `json:"run,omitempty"`
	Order *runner.Order `json:"order,omitempty"` // without Stdin
	Stdin int           `json:"stdin,omitempty"` // how many bytes follow the line
	Again bool          `json:"again,omitempty"` // the order may have been carried out already
	Why   runner.State  `json:"why,omitempty"`
	Grace time.Duration `json:"grace,omitempty"`
	Exe   string        `json:"exe,omitempty"`

	InForce string `json:"in_force,omitempty"` // hook.Digest of the hooks that the server goes by
}

type reply struct {
	ID     uint64       `json:"id"`
	Fault  *fault       `json:"fault,omitempty"`
	End    *runner.End  `json:"end,omitempty"`
	Why    runner.State `json:"why,omitempty"` // End.Reason, which JSON leaves out
	Runs   []string     `json:"runs,omitempty"`
	Digest string       `json:"digest,omitempty"` // of all hooks
}

// fault is an error on its way.
type fault struct {
	Kind string `json:"kind,omitempty"`
	Text string `json:"text"`
}

// ErrSuperseded says that another server has taken the supervisor over.
var ErrSuperseded = fmt.Errorf("another server has taken over: %w", runner.ErrLeft)

// faultKinds are the errors that keep their identity on the way.
func faultKinds() map[string]error {
	return map[string]error{
		"unknown": runner.ErrUnknown, "flight": runner.ErrFlight, "full": runner.ErrFull, "exists": fs.ErrExist, "superseded": ErrSuperseded,
		"not now": runner.ErrNotNow, "refused": runner.ErrRefused,
	}
}

func newFault(err error) *fault {
	if err == nil {
		return nil
	}
	f := &fault{Text: err.Error()}
	for kind, is := range faultKinds() {
		if errors.Is(err, is) {
			f.Kind = kind
		}
	}
	return f
}

func (f *fault) Error() string { return f.Text }

func (f *fault) Unwrap() error { return faultKinds()[f.Kind] }

// asError is the fault as an error, or nil.
func (f *fault) asError() error {
	if f == nil {
		return nil
	}
	return f
}

// writeLine writes v and what follows it at once.
func writeLine(w io.Writer, v any, rest []byte) error {
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(v); err != nil {
		return err
	}
	b.Write(rest)
	_, err := w.Write(b.Bytes())
	return err
}

func readLine(r *bufio.Reader, v any) error {
	line, err := r.ReadBytes('\n')
	if err != nil {
		return err
	}
	return json.Unmarshal(line, v)
}

// readGreeting reads a line of somebody who is not known yet.
func readGreeting(r *bufio.Reader, v any) error {
	line, err := r.ReadSlice('\n') // no more than the reader holds
	if err != nil {
		return err
	}
	return json.Unmarshal(line, v)
}

func readRequest(r *bufio.Reader) (*request, error) {
	q := new(request)
	if err := readLine(r, q); err != nil {
		return nil, err
	}
	if q.Stdin < 0 || q.Stdin > maxStdin || q.Stdin > 0 && q.Order == nil {
		return nil, fmt.Errorf("%d bytes for stdin", q.Stdin)
	}
	if q.Stdin > 0 {
		q.Order.Stdin = make([]byte, q.Stdin)
		if _, err := io.ReadFull(r, q.Order.Stdin); err != nil {
			return nil, err
		}
	}
	return q, nil
}

// checkPeer refuses a peer that runs as another user, and returns its process; 0
// where the system does not tell.
func checkPeer(conn *net.UnixConn, uid int) (pid int, err error) {
	got, pid, err := peerCredentials(conn)
	if err != nil {
		return 0, fmt.Errorf("asking who the peer is: %w", err)
	}
	if got != uid {
		return 0, fmt.Errorf("the peer runs as user %d and not as %d", got, uid)
	}
	return pid, nil
}

// withSocket calls f with a path of a socket in the folder. The system takes
// no more than a hundred bytes, whatever a folder's name may be.
func withSocket(dir, name string, f func(path string) error) error {
	const most = 100
	path := filepath.Join(dir, name)
	if len(path) <= most {
		return f(path)
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }() // only read
	short := filepath.Join("/proc/self/fd", strconv.Itoa(int(d.Fd())), name)
	if _, err := os.Stat(filepath.Dir(short)); err != nil {
		return fmt.Errorf("the path %s is too long for a socket", path)
	}
	return f(short)
}

// link is a connection to the supervisor, on the server's side. One goroutine
// reads and one writes, so that no caller is held up by a supervisor that reads
// nothing.
type link struct {
	conn *net.UnixConn
	welcome

	requests chan *request // to be written
	mu       sync.Mutex
	last     uint64
	waiting  map[uint64]chan *reply
	broken   chan struct{} // closed when nothing comes any more
}

// errBroken says that no answer came, so that nobody knows what was done.
var errBroken = errors.New("the connection to the supervisor broke")

// dialSupervisor connects and greets.
func dialSupervisor(ctx context.Context, dir, client string) (*link, error) {
	l, r, err := greetAt(ctx, dir, hello{Client: client})
	if err != nil {
		return nil, err
	}
	go l.readReplies(r)
	go l.writeRequests()
	return l, nil
}

// probeSuperseded is ErrSuperseded when another server has taken over from the client.
func probeSuperseded(ctx context.Context, dir, client string) error {
	l, _, err := greetAt(ctx, dir, hello{Client: client, Probe: true})
	if err != nil {
		return err
	}
	return l.conn.Close()
}

// greetAt connects and says h, to which it adds the secret.
func greetAt(ctx context.Context, dir string, h hello) (*link, *bufio.Reader, error) {
	var conn net.Conn
	err := withSocket(dir, socketFile, func(path string) (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, "unix", path)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	l := &link{requests: make(chan *request), waiting: map[uint64]chan *reply{}, broken: make(chan struct{})}
	l.conn, _ = conn.(*net.UnixConn) // as the network is "unix"
	r := bufio.NewReaderSize(conn, maxGreeting)
	if err := l.exchangeGreetings(ctx, r, dir, h); err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return l, r, nil
}

func (l *link) exchangeGreetings(ctx context.Context, r *bufio.Reader, dir string, h hello) error {
	if _, err := checkPeer(l.conn, os.Geteuid()); err != nil {
		return err
	}
	var err error
	if h.Secret, err = os.ReadFile(filepath.Join(dir, secretFile)); err != nil {
		return fmt.Errorf("reading the secret: %w", err)
	}
	until := time.Now().Add(greetingTime)
	if at, ok := ctx.Deadline(); ok && at.Before(until) {
		until = at
	}
	if err := l.conn.SetDeadline(until); err != nil {
		return err
	}
	if err := writeLine(l.conn, h, nil); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	if err := readGreeting(r, &l.welcome); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	if l.Fault != nil {
		return l.Fault
	}
	return l.conn.SetDeadline(time.Time{})
}

func (l *link) isBroken() bool {
	select {
	case <-l.broken:
		return true
	default:
		return false
	}
}

// readReplies hands replies to those who wait for them.
func (l *link) readReplies(r *bufio.Reader) {
	defer close(l.broken)
	for {
		p := new(reply)
		if err := readLine(r, p); err != nil {
			_ = l.conn.Close()
			return
		}
		l.mu.Lock()
		ch := l.waiting[p.ID]
		delete(l.waiting, p.ID)
		l.mu.Unlock()
		if ch != nil {
			ch <- p
		}
	}
}

// writeRequests sends requests until the connection breaks.
func (l *link) writeRequests() {
	for {
		select {
		case q := <-l.requests:
			var stdin []byte
			if q.Order != nil {
				o := *q.Order
				stdin, o.Stdin = o.Stdin, nil
				q.Order, q.Stdin = &o, len(stdin)
			}
			if err := writeLine(l.conn, q, stdin); err != nil { // half a request may be on its way
				_ = l.conn.Close() // which read notices
				return
			}
		case <-l.broken:
			return
		}
	}
}

// callAndWait asks and waits for the answer, or until ctx is done: then what was asked
// stands, unless it was not sent yet. Errors wrap errBroken when no answer comes any
// more, and errSilent when ctx was done.
func (l *link) callAndWait(ctx context.Context, q request) (*reply, error) {
	ch := make(chan *reply, 1)
	l.mu.Lock()
	l.last++
	q.ID = l.last
	l.waiting[q.ID] = ch
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.waiting, q.ID)
		l.mu.Unlock()
	}()
	requests := l.requests
	for {
		select {
		case requests <- &q:
			requests = nil // sent, or about to be
		case p := <-ch:
			return p, p.Fault.asError()
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %s", errSilent, q.Do)
		case <-l.broken:
			select { // it may have come just before
			case p := <-ch:
				return p, p.Fault.asError()
			default:
				return nil, errBroken
			}
		}
	}
}
