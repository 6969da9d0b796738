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
	"sync/atomic"
	"time"

	"sallyport/runner"
)

// The protocol of the server and the supervisor: first each sends a line as a greeting, then requests and replies
// follow in any order, each a line of JSON. The bytes for stdin may follow a request.

// The names in the state folder.
const (
	runsDir    = "runs"
	socketFile = "supervisor.sock"
	secretFile = "supervisor.secret"
	mutexFile  = "supervisor.lock" // the supervisor holds its flock; before that, the server that starts it
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
	maxStdin     = 1 << 30 // the largest body.max of a hook
)

// hello is the greeting of a server.
type hello struct {
	Secret []byte `json:"secret"`
	Client string `json:"client"`          // a random id of the Client
	Probe  bool   `json:"probe,omitempty"` // the server only asks whether another one has taken over
}

// welcome is the answer of the supervisor to hello.
type welcome struct {
	PID     int    `json:"pid"`
	Version string `json:"version"`
	Fault   *fault `json:"fault,omitempty"`
}

// verb is the action that a request asks for. The supervisor may have another version than the server, so the meaning
// of a verb never changes.
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
	Stdin int           `json:"stdin,omitempty"` // the number of bytes that follow the line
	Again bool          `json:"again,omitempty"` // the order may have been carried out already
	Why   runner.State  `json:"why,omitempty"`
	Grace time.Duration `json:"grace,omitempty"`
	Exe   string        `json:"exe,omitempty"`

	InForce string `json:"in_force,omitempty"` // hook.Digest of the hooks that the server uses
}

type reply struct {
	ID     uint64       `json:"id"`
	Fault  *fault       `json:"fault,omitempty"`
	End    *runner.End  `json:"end,omitempty"`
	Why    runner.State `json:"why,omitempty"` // End.Reason, which JSON leaves out
	Runs   []string     `json:"runs,omitempty"`
	Digest string       `json:"digest,omitempty"` // hook.Digest of all hooks
}

// fault is an error as it is sent in a reply.
type fault struct {
	Kind string `json:"kind,omitempty"`
	Text string `json:"text"`
}

// ErrSuperseded says that another server has taken the supervisor over.
var ErrSuperseded = fmt.Errorf("another server has taken over: %w", runner.ErrLeft)

// faultKinds returns the errors for which errors.Is works on the other side, too.
func faultKinds() map[string]error {
	return map[string]error{
		"unknown": runner.ErrUnknown, "flight": runner.ErrFlight, "full": runner.ErrFull, "exists": fs.ErrExist,
		"superseded": ErrSuperseded,
		"not now":    runner.ErrNotNow, "refused": runner.ErrRefused,
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

// asError returns the fault as an error, or nil.
func (f *fault) asError() error {
	if f == nil {
		return nil
	}
	return f
}

// writeLine writes v as a line, followed by rest, in one call.
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

// readGreeting reads a bounded line of a peer that is not authenticated yet.
func readGreeting(r *bufio.Reader, v any) error {
	line, err := r.ReadSlice('\n') // at most the buffer of the reader
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

// checkPeer refuses a peer that runs as another user, and returns its process id; 0 if the system does not report it.
func checkPeer(conn *net.UnixConn, uid int) (pid int, err error) {
	got, pid, err := peerCredentials(conn)
	if err != nil {
		return 0, fmt.Errorf("reading the credentials of the peer: %w", err)
	}
	if got != uid {
		return 0, fmt.Errorf("the peer runs as user %d and not as %d", got, uid)
	}
	return pid, nil
}

// withSocket calls f with a path of a socket in the folder. The system allows about a hundred bytes for this path, so
// for a longer one it uses a short path through /proc.
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

// link is a connection to the supervisor, on the server's side. One goroutine reads and one writes, so that a
// supervisor that does not read blocks no caller.
type link struct {
	conn *net.UnixConn
	welcome

	requests chan *request // requests that are to be written
	last     atomic.Uint64 // the id of the last request
	waiting  sync.Map      // by id of the request: the chan *reply of its caller
	broken   chan struct{} // closed when no more replies arrive
}

// errBroken says that the connection broke before an answer came, so it is unknown what the supervisor did.
var errBroken = errors.New("the connection to the supervisor broke")

// dialSupervisor connects to the supervisor and greets it.
func dialSupervisor(ctx context.Context, dir, client string) (*link, error) {
	l, r, err := greetAt(ctx, dir, hello{Client: client})
	if err != nil {
		return nil, err
	}
	go l.readReplies(r)
	go l.writeRequests()
	return l, nil
}

// probeSuperseded returns ErrSuperseded when another server has replaced the client.
func probeSuperseded(ctx context.Context, dir, client string) error {
	l, _, err := greetAt(ctx, dir, hello{Client: client, Probe: true})
	if err != nil {
		return err
	}
	return l.conn.Close()
}

// greetAt connects and sends h with the secret.
func greetAt(ctx context.Context, dir string, h hello) (*link, *bufio.Reader, error) {
	var conn net.Conn
	err := withSocket(dir, socketFile, func(path string) (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, "unix", path)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	l := &link{requests: make(chan *request), broken: make(chan struct{})}
	l.conn, _ = conn.(*net.UnixConn) // always of this type, because the network is "unix"
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

// readReplies passes each reply to the caller that waits for it.
func (l *link) readReplies(r *bufio.Reader) {
	defer close(l.broken)
	for {
		p := new(reply)
		if err := readLine(r, p); err != nil {
			_ = l.conn.Close()
			return
		}
		if ch, ok := l.waiting.LoadAndDelete(p.ID); ok {
			ch.(chan<- *reply) <- p //nolint:errcheck,forcetypeassert // callAndWait stored it
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
			if err := writeLine(l.conn, q, stdin); err != nil { // half of a request may have been sent
				_ = l.conn.Close() // readReplies notices that
				return
			}
		case <-l.broken:
			return
		}
	}
}

// callAndWait sends a request and waits for the answer, or until ctx is done. A request that was sent is still
// carried out after that. Errors wrap errBroken when the connection broke, and errSilent when ctx was done.
func (l *link) callAndWait(ctx context.Context, q request) (*reply, error) {
	ch := make(chan *reply, 1)
	q.ID = l.last.Add(1)
	l.waiting.Store(q.ID, (chan<- *reply)(ch))
	defer l.waiting.Delete(q.ID)
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
			select { // the answer may have arrived just before
			case p := <-ch:
				return p, p.Fault.asError()
			default:
				return nil, errBroken
			}
		}
	}
}
