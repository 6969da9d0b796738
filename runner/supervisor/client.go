package supervisor

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/internal/guard"
	"sallyport/internal/logging"
	"sallyport/internal/pathsafe"
	"sallyport/runner"
	"sallyport/runner/process/output"
	"sallyport/runner/process/rundir"
)

// Options say where a supervisor is, and how to start one.
type Options struct {
	State   string // the state folder, made with mode 0700 when it is missing
	Config  string // the configuration file
	Exe     string // the program; it is started as: Exe supervise --state State --config Config
	Version string // of Exe: a supervisor of another one is asked to replace itself in place
	Log     *slog.Logger
	Env     []string // what [process.LoginEnv] returns for the server's environment

	// Of tests.
	updateAgain, watchEach, silenceTime time.Duration
}

// Client has the supervisor of an installation start and follow commands, in a
// process of its own that goes on when this one ends. It is a
// runner.Processes, safe for concurrent use.
//
// A supervisor that is gone is started again. What it left under way is
// followed by the new one until it is over; such a run ends Interrupted.
type Client struct {
	o    Options
	id   string
	ctx  context.Context // of all that goes on until Close
	stop context.CancelFunc

	displaced chan struct{} // closed once another server has taken over
	displace  sync.Once

	mu     sync.Mutex // never held while something is waited for
	link   *link
	search *search             // under way, or nil
	lost   bool                // the log says that the supervisor cannot be reached
	stops  map[string]*stopAsk // under way, by run

	// Of the search under way.
	foreign string // version of the supervisor once it did replace itself, by a program that is not ours either
	told    bool   // the log says that it stays what it is
}

// search is one for a supervisor. Whoever needs a connection meanwhile waits for
// it, for as long as they like.
type search struct {
	done chan struct{} // closed when the rest is set
	link *link
	err  error
}

// stopAsk is a Stop under way.
type stopAsk struct {
	why   runner.State
	grace time.Duration
	done  chan struct{}
	err   error
}

const (
	patience   = 15 * time.Second // with a supervisor that is to be started or found
	answerTime = 5 * time.Second  // of one that has little to do for its answer
	askAgain   = time.Second

	updateAgain = time.Minute // a supervisor of another version that could not replace itself
)

// errUnreached says that nothing was asked, for want of a supervisor.
var errUnreached = fmt.Errorf("%w: reaching the supervisor", runner.ErrNotNow)

// errSilent says that nobody knows yet what was done.
var errSilent = errors.New("the supervisor does not answer")

// Connect finds the supervisor of a state folder or starts it. Another Client
// that was connected to it no longer is. ctx bounds the search alone.
func Connect(ctx context.Context, o Options) (*Client, error) {
	dir, root, err := rundir.OpenPrivate(o.State)
	if err != nil {
		return nil, fmt.Errorf("opening the state folder: %w", err)
	}
	if err := root.Close(); err != nil {
		return nil, fmt.Errorf("opening the state folder: %w", err)
	}
	o.State, o.updateAgain = dir, cmp.Or(o.updateAgain, updateAgain)
	o.watchEach, o.silenceTime = cmp.Or(o.watchEach, watchEach), cmp.Or(o.silenceTime, silenceTime)
	for _, path := range []*string{&o.Config, &o.Exe} { // the supervisor works elsewhere
		if *path, err = filepath.Abs(*path); err != nil {
			return nil, fmt.Errorf("finding the supervisor's files: %w", err)
		}
	}
	c := &Client{o: o, id: rand.Text(), displaced: make(chan struct{}), stops: map[string]*stopAsk{}}
	c.ctx, c.stop = context.WithCancel(context.WithoutCancel(ctx))
	l, err := c.findAndUpdate(ctx)
	if err != nil {
		c.stop()
		return nil, unreached(err)
	}
	c.use(l)
	go c.keepVersion() //nolint:contextcheck // it ends with Close
	go c.watch()
	return c, nil
}

// Close leaves the supervisor and all that runs alone.
func (c *Client) Close() error {
	c.stop()
	c.mu.Lock()
	s := c.search
	c.mu.Unlock()
	if s != nil {
		<-s.done
	}
	c.mu.Lock()
	l := c.link
	c.mu.Unlock()
	_ = l.conn.Close()
	<-l.broken
	return nil
}

// Displaced is closed once another server has taken over: this one starts nothing
// any more, and learns of no end.
func (c *Client) Displaced() <-chan struct{} { return c.displaced }

// PID is the supervisor's process, as it was when it was last spoken to.
func (c *Client) PID() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.link.PID
}

// Start is that of runner.Processes. An order that was lost on the way is asked
// for again until it is known what became of it, and carried out once.
func (c *Client) Start(o runner.Order) error {
	_, err := c.call(c.ctx, request{Do: doStart, Order: &o}, false)
	return err
}

// Stop is that of runner.Processes. A supervisor that does not answer in time is
// an error, and stops the run when it can.
func (c *Client) Stop(run string, why runner.State, grace time.Duration) error {
	ask := c.askStop(run, why, grace)
	select {
	case <-ask.done:
		return ask.err
	case <-time.After(answerTime):
		return fmt.Errorf("%w: %s", errSilent, doStop)
	}
}

// askStop asks for a stop until it is answered. However often the same is asked
// for, it is asked once.
func (c *Client) askStop(run string, why runner.State, grace time.Duration) *stopAsk {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ask := c.stops[run]; ask != nil && ask.why == why && ask.grace == grace {
		return ask
	}
	ask := &stopAsk{why: why, grace: grace, done: make(chan struct{})}
	c.stops[run] = ask
	go func() {
		_, ask.err = guard.Call(c.o.Log, func() (*reply, error) {
			return c.call(c.ctx, request{Do: doStop, Run: run, Why: why, Grace: grace}, true)
		})
		close(ask.done)
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.stops[run] == ask {
			delete(c.stops, run)
		}
	}()
	return ask
}

// Revoke is that of runner.Processes. It needs no answer of the supervisor, which may be stopped and hold the order.
func (c *Client) Revoke(run string, why runner.State) (revoked bool, err error) {
	root, err := os.OpenRoot(filepath.Join(c.o.State, runsDir))
	if err != nil {
		return false, fmt.Errorf("revoking run %s: %w", run, err)
	}
	defer func() { _ = root.Close() }() // nothing is written through it any more
	return rundir.Revoke(root, run, why)
}

// List names the runs that are under way, those that an earlier supervisor
// left too.
func (c *Client) List() ([]string, error) {
	p, err := c.within(answerTime, request{Do: doList})
	if err != nil {
		return nil, err
	}
	return p.Runs, nil
}

// Reload has the supervisor read the hooks anew, and returns the hook.Digest
// of what it read. Those in force, whose digest is given, it goes on starting too:
// they may stay what they are.
func (c *Client) Reload(inForce string) (string, error) {
	p, err := c.within(patience, request{Do: doReload, InForce: inForce})
	if err != nil {
		return "", err
	}
	return p.Digest, nil
}

// Quit ends the supervisor. It is an error when runs are under way.
func (c *Client) Quit() error {
	_, err := c.within(answerTime, request{Do: doQuit})
	return err
}

// Known tells whether a run was ever given to Start.
func (c *Client) Known(run string) (bool, error) {
	_, err := c.within(patience, request{Do: doKnown, Run: run})
	if errors.Is(err, runner.ErrUnknown) {
		return false, nil
	}
	return err == nil, err
}

// Follow yields the end of a run once, and is closed. It is an error that wraps
// runner.ErrUnknown when the run is not known: a run that was ordered and is not
// known never started. After Close, or when another server has taken over, the
// channel is closed without an end, or the error wraps runner.ErrLeft. A
// supervisor that cannot be reached, or does not answer, is waited for. Meanwhile
// this process holds the run's FIFO, so that what the command writes last is not
// lost when it ends while there is no supervisor.
func (c *Client) Follow(run string) (<-chan runner.End, error) {
	if _, err := c.call(c.ctx, request{Do: doKnown, Run: run}, true); err != nil {
		return nil, err
	}
	release := output.HoldFIFO(filepath.Join(c.o.State, runsDir, run))
	ends := make(chan runner.End, 1)
	go func() {
		defer close(ends)
		defer release()
		for failing := new(logging.Repeated); ; {
			p, err := c.call(c.ctx, request{Do: doWait, Run: run}, true)
			switch {
			case err == nil && p.End != nil:
				p.End.Reason = p.Why
				ends <- *p.End
				return
			case errors.Is(err, runner.ErrUnknown): // its folder is gone
				ends <- runner.End{Ended: time.Now(), Reason: runner.Interrupted}
				return
			case errors.Is(err, runner.ErrLeft):
				return
			}
			if failing.IsNew(err) {
				c.o.Log.Warn("following a run; it will be tried again", "run", run, "error", err)
			}
			<-time.After(askAgain)
		}
	}()
	return ends, nil
}

// Output opens the output of a run. The caller closes it.
func (c *Client) Output(run string) (*output.Reader, error) {
	return output.Open(filepath.Join(c.o.State, runsDir), run)
}

// within is call for what the supervisor does at once. What was asked stands when
// the time is over, if it was sent.
func (c *Client) within(t time.Duration, q request) (*reply, error) {
	ctx, done := context.WithTimeout(c.ctx, t)
	defer done()
	return c.call(ctx, q, false)
}

// call asks the supervisor, and again when the connection broke before an answer
// came. Where none can be reached it is an error, unless an answer is needed: to
// who says so, and to a start that may have been carried out. After Close errors
// wrap runner.ErrLeft, and errSilent when ctx was done before.
func (c *Client) call(ctx context.Context, q request, need bool) (*reply, error) {
	for {
		l, err := c.connected(ctx)
		if err == nil {
			var p *reply
			if p, err = l.call(ctx, q); !errors.Is(err, errBroken) && !errors.Is(err, errSilent) {
				return p, err
			}
		}
		switch {
		case c.ctx.Err() != nil:
			return nil, fmt.Errorf("%w: %w", runner.ErrLeft, err)
		case ctx.Err() != nil:
			return nil, err
		case errors.Is(err, errBroken) && q.Do != doQuit:
			q.Again = true
			need = need || q.Do == doStart
		case errors.Is(err, errUnreached) && need:
			select {
			case <-time.After(askAgain):
			case <-ctx.Done():
			}
		default:
			return nil, err
		}
	}
}

// connected returns the connection. Where there is none that works, one search for
// another is under way, whoever waits for it.
func (c *Client) connected(ctx context.Context) (*link, error) {
	s, l := c.searching() //nolint:contextcheck // a search is shared, so no caller's end ends it
	if s == nil {
		return l, nil
	}
	select {
	case <-s.done:
		return s.link, s.err
	case <-ctx.Done():
		return nil, unreached(ctx.Err())
	}
}

// searching returns the search under way, which it begins where the connection is
// broken, or the connection.
func (c *Client) searching() (*search, *link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !c.link.isBroken():
		return nil, c.link
	case c.search != nil:
		return c.search, nil
	case c.ctx.Err() != nil:
		s := &search{done: make(chan struct{}), err: unreached(c.ctx.Err())}
		close(s.done)
		return s, nil
	}
	return c.beginSearch(c.findAndUpdate), nil
}

// beginSearch looks for a supervisor in the background. The caller holds mu, and
// no search is under way.
func (c *Client) beginSearch(look func(context.Context) (*link, error)) *search {
	s := &search{done: make(chan struct{})}
	c.search = s
	go func() {
		defer close(s.done)
		ctx, done := context.WithTimeout(c.ctx, patience)
		defer done()
		s.link, s.err = guard.Call(c.o.Log, func() (*link, error) { return look(ctx) })
		if s.err != nil {
			s.err = unreached(s.err)
			c.noteLost(s.err)
			return
		}
		c.use(s.link)
	}()
	return s
}

// noteLost ends a search in vain. The log says once that the supervisor cannot be
// reached.
func (c *Client) noteLost(err error) {
	if errors.Is(err, ErrSuperseded) {
		c.displace.Do(func() { close(c.displaced) })
	}
	c.mu.Lock()
	c.search = nil
	logged := c.lost
	c.lost = true
	c.mu.Unlock()
	if !logged && c.ctx.Err() == nil {
		c.o.Log.Error("the supervisor cannot be reached; it is tried again", "error", err)
	}
}

// use makes l the connection, which ends a search. When it breaks, the supervisor
// is asked whether another server has taken over; one that is gone is started by
// whoever needs it.
func (c *Client) use(l *link) {
	c.mu.Lock()
	before, lost := c.link, c.lost
	c.link, c.lost, c.search = l, false, nil
	c.mu.Unlock()
	if before == l {
		return
	}
	if lost {
		c.o.Log.Info("the supervisor is reached again", "pid", l.PID)
	}
	go func() {
		<-l.broken
		if err := probe(c.ctx, c.o.State, c.id); errors.Is(err, ErrSuperseded) {
			c.displace.Do(func() { close(c.displaced) })
		}
	}()
}

func (c *Client) findAndUpdate(ctx context.Context) (*link, error) {
	l, err := c.find(ctx)
	if err != nil {
		return nil, err
	}
	return c.update(ctx, l)
}

// update has a supervisor of another version replace itself, and returns the
// connection to what it is then. One that cannot is asked again: what is in its
// way may pass.
func (c *Client) update(ctx context.Context, l *link) (*link, error) {
	if l.Version == c.o.Version || l.Version == c.foreign {
		return l, nil
	}
	_, err := l.call(ctx, request{Do: doReplace, Exe: c.o.Exe})
	if errors.Is(err, errSilent) { // it would be another one at any moment
		_ = l.conn.Close()
		return nil, err
	}
	if errors.Is(err, errBroken) { // as it must be: the old image is gone
		if l, err = c.find(ctx); err != nil {
			return nil, err
		}
		if l.Version == c.o.Version {
			return l, nil
		}
		c.foreign, err = l.Version, fmt.Errorf("%s is of another version than this server by now", c.o.Exe)
	}
	if !c.told {
		c.told = true
		c.o.Log.Warn("the supervisor stays what it is", "version", l.Version, "error", err)
	}
	return l, nil
}

// keepVersion asks a supervisor of another version again, from time to time.
func (c *Client) keepVersion() {
	tick := time.NewTicker(c.o.updateAgain)
	defer tick.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-tick.C:
			c.updateLinked()
		}
	}
}

func (c *Client) updateLinked() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.link; c.search == nil && !l.isBroken() { // else the search sees to it
		c.beginSearch(func(ctx context.Context) (*link, error) { return c.update(ctx, l) })
	}
}

func unreached(err error) error {
	if errors.Is(err, ErrSuperseded) {
		return err
	}
	return fmt.Errorf("%w: %w", errUnreached, err)
}

// find dials until a supervisor answers, and starts one when there is none.
func (c *Client) find(ctx context.Context) (*link, error) {
	const first, last = time.Millisecond, 50 * time.Millisecond
	var died <-chan error
	var failing logging.Repeated
	began := time.Now()
	for wait := first; ; wait = min(2*wait, last) {
		l, err := dial(ctx, c.o.State, c.id)
		if err == nil || errors.Is(err, ErrSuperseded) {
			return l, err
		}
		if time.Since(began) >= askAgain && failing.IsNew(err) {
			c.o.Log.Warn("waiting for the supervisor", "error", err)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.wake(greetingTime)
		}
		if ctx.Err() != nil {
			return nil, errors.Join(err, ctx.Err())
		}
		if died == nil {
			ended, err := c.spawn()
			if err != nil {
				return nil, fmt.Errorf("starting it: %w", rundir.MarkFull(err))
			}
			died = ended
		}
		select {
		case end := <-died:
			return nil, fmt.Errorf("it ended at once: %w", end)
		case <-ctx.Done():
			return nil, errors.Join(err, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// spawn starts a supervisor, unless somebody holds its lock: then there is one,
// or will be, and the channel is nil. Otherwise it tells of its end.
func (c *Client) spawn() (died <-chan error, err error) {
	mutex, err := os.OpenFile(filepath.Join(c.o.State, mutexFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, mutex.Close()) }() // the supervisor has it by then
	if err := unix.Flock(int(mutex.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, nil
		}
		return nil, fmt.Errorf("taking its lock: %w", err)
	}
	if err := c.makeSecret(); err != nil {
		return nil, err
	}
	socket, err := listen(c.o.State)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, socket.Close()) }()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, null.Close()) }()
	// A session of its own, so that no terminal's end reaches it; and nothing of
	// our environment but what commands get, because it may hold secrets.
	argv := []string{c.o.Exe, "supervise", "--state", c.o.State, "--config", c.o.Config}
	attr := &os.ProcAttr{
		Dir: "/", Env: append([]string{}, c.o.Env...), // never nil, which would stand for all of ours
		Files: []*os.File{null, null, os.Stderr, socketFD: socket, mutexFD: mutex},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	p, err := withoutCapabilities(func() (*os.Process, error) { return os.StartProcess(c.o.Exe, argv, attr) })
	if err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() {
		s, err := p.Wait()
		ended <- errors.Join(err, fmt.Errorf("%v", s))
	}()
	return ended, nil
}

// makeSecret writes what a server must know besides its user. Only the holder
// of the lock calls it.
func (c *Client) makeSecret() error {
	secret := make([]byte, secretBytes)
	_, _ = rand.Read(secret) // never fails
	if err := pathsafe.ReplaceFileAt(filepath.Join(c.o.State, secretFile), secret, 0o600); err != nil {
		return fmt.Errorf("making the secret: %w", err)
	}
	return nil
}

// listen makes the socket of the supervisor, which is the caller or inherits it.
func listen(state string) (f *os.File, err error) {
	if err := os.Remove(filepath.Join(state, socketFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("removing the old socket: %w", err)
	}
	err = withSocket(state, socketFile, func(path string) error {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			return err
		}
		l.SetUnlinkOnClose(false)
		f, err = l.File()
		return errors.Join(err, l.Close(), os.Chmod(path, 0o600))
	})
	if err != nil {
		return nil, fmt.Errorf("making the socket: %w", err)
	}
	return f, nil
}
