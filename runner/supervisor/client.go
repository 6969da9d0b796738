package supervisor

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"sallyport/internal/guard"
	"sallyport/internal/logging"
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
	*connection

	stops map[string]*stopAsk // under way, by run; guarded by mu
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
	c := &Client{
		connection: &connection{o: o, id: rand.Text(), displaced: make(chan struct{})}, stops: map[string]*stopAsk{},
	}
	c.ctx, c.stop = context.WithCancel(context.WithoutCancel(ctx))
	l, err := c.findAndUpdate(ctx)
	if err != nil {
		c.stop()
		return nil, wrapUnreached(err)
	}
	c.useLink(l)
	go c.repeat(o.updateAgain, c.updateLinked)
	go c.repeat(o.watchEach, c.awaitAnswer)
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

// Start is that of runner.Processes. An order that was lost on the way is asked
// for again until it is known what became of it, and carried out once.
func (c *Client) Start(o runner.Order) error {
	_, err := c.askSupervisor(c.ctx, request{Do: doStart, Order: &o}, false)
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
			return c.askSupervisor(c.ctx, request{Do: doStop, Run: run, Why: why, Grace: grace}, true)
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
	p, err := c.askWithin(answerTime, request{Do: doList})
	if err != nil {
		return nil, err
	}
	return p.Runs, nil
}

// Reload has the supervisor read the hooks anew, and returns the hook.Digest
// of what it read. Those in force, whose digest is given, it goes on starting too:
// they may stay what they are.
func (c *Client) Reload(inForce string) (string, error) {
	p, err := c.askWithin(patience, request{Do: doReload, InForce: inForce})
	if err != nil {
		return "", err
	}
	return p.Digest, nil
}

// Quit ends the supervisor. It is an error when runs are under way.
func (c *Client) Quit() error {
	_, err := c.askWithin(answerTime, request{Do: doQuit})
	return err
}

// Known tells whether a run was ever given to Start.
func (c *Client) Known(run string) (bool, error) {
	_, err := c.askWithin(patience, request{Do: doKnown, Run: run})
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
	if _, err := c.askSupervisor(c.ctx, request{Do: doKnown, Run: run}, true); err != nil {
		return nil, err
	}
	release := output.HoldFIFO(filepath.Join(c.o.State, runsDir, run))
	ends := make(chan runner.End, 1)
	go func() {
		defer close(ends)
		defer release()
		for failing := new(logging.Repeated); ; {
			p, err := c.askSupervisor(c.ctx, request{Do: doWait, Run: run}, true)
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

// askWithin is askSupervisor for what the supervisor does at once. What was asked stands when
// the time is over, if it was sent.
func (c *Client) askWithin(t time.Duration, q request) (*reply, error) {
	ctx, done := context.WithTimeout(c.ctx, t)
	defer done()
	return c.askSupervisor(ctx, q, false)
}

// askSupervisor asks the supervisor, and again when the connection broke before an answer
// came. Where none can be reached it is an error, unless an answer is needed: to
// who says so, and to a start that may have been carried out. After Close errors
// wrap runner.ErrLeft, and errSilent when ctx was done before.
func (c *Client) askSupervisor(ctx context.Context, q request, need bool) (*reply, error) {
	for {
		l, err := c.awaitLink(ctx)
		if err == nil {
			var p *reply
			if p, err = l.callAndWait(ctx, q); !errors.Is(err, errBroken) && !errors.Is(err, errSilent) {
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
