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

// Options say where the supervisor is, and how to start one.
type Options struct {
	State   string // the state folder, made with mode 0700 when it is missing
	Config  string // the configuration file
	Exe     string // the program; it is started as: Exe supervise --state State --config Config
	Version string // version of Exe; a supervisor of another version is asked to replace itself
	Log     *slog.Logger
	Env     []string // what [process.LoginEnv] returns for the server's environment

	// Set by tests.
	updateAgain, watchEach, silenceTime time.Duration
}

// Client starts and follows commands through the supervisor of an installation, a separate process that continues to
// run when this one ends. It implements runner.Processes and is safe for concurrent use.
//
// If the supervisor has ended, it is started again. The new supervisor follows the runs in progress that the old one
// left until they are over; such a run ends Interrupted.
type Client struct {
	*connection

	stops map[string]*stopAsk // stops in progress, by run; guarded by mu
}

// stopAsk is a Stop in progress.
type stopAsk struct {
	why   runner.State
	grace time.Duration
	done  chan struct{}
	err   error
}

const (
	patience   = 15 * time.Second // for a supervisor to be started or found
	answerTime = 5 * time.Second  // for a supervisor to answer a short request
	askAgain   = time.Second

	updateAgain = time.Minute // the interval between upgrade requests to a supervisor of another version
)

// errUnreached says that no request was sent, because no supervisor could be reached.
var errUnreached = fmt.Errorf("%w: reaching the supervisor", runner.ErrNotNow)

// errSilent says that the supervisor has not answered yet, so it is unknown what it did.
var errSilent = errors.New("the supervisor does not answer")

// Connect finds the supervisor of a state folder or starts one. It disconnects any other Client from that supervisor.
// ctx bounds only the search.
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
	for _, path := range []*string{&o.Config, &o.Exe} { // the supervisor has another working directory
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

// Close closes the connection. The supervisor and its runs continue.
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

// Start implements runner.Processes. If the connection breaks before the answer, the order is sent again until its
// result is known. It is carried out once.
func (c *Client) Start(o runner.Order) error {
	_, err := c.askSupervisor(c.ctx, request{Do: doStart, Order: &o}, false)
	return err
}

// Stop implements runner.Processes. If the supervisor does not answer in time, Stop returns an error, and the
// supervisor stops the run when it can.
func (c *Client) Stop(run string, why runner.State, grace time.Duration) error {
	ask := c.askStop(run, why, grace)
	select {
	case <-ask.done:
		return ask.err
	case <-time.After(answerTime):
		return fmt.Errorf("%w: %s", errSilent, doStop)
	}
}

// askStop sends a stop request until it is answered. If the same request is in progress already, it returns that one.
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

// Revoke implements runner.Processes. It needs no answer of the supervisor, which may be stopped and hold the order.
func (c *Client) Revoke(run string, why runner.State) (revoked bool, err error) {
	root, err := os.OpenRoot(filepath.Join(c.o.State, runsDir))
	if err != nil {
		return false, fmt.Errorf("revoking run %s: %w", run, err)
	}
	defer func() { _ = root.Close() }() // nothing is written through it any more
	return rundir.Revoke(root, run, why)
}

// List returns the ids of the runs in progress, including those that an earlier supervisor left.
func (c *Client) List() ([]string, error) {
	p, err := c.askWithin(answerTime, request{Do: doList})
	if err != nil {
		return nil, err
	}
	return p.Runs, nil
}

// Reload makes the supervisor read the hooks again, and returns the hook.Digest of what it read. inForce is the
// digest of the hooks that the server uses. The supervisor continues to start these hooks too, because the server may
// keep them.
func (c *Client) Reload(inForce string) (string, error) {
	p, err := c.askWithin(patience, request{Do: doReload, InForce: inForce})
	if err != nil {
		return "", err
	}
	return p.Digest, nil
}

// Quit ends the supervisor. It returns an error when runs are in progress.
func (c *Client) Quit() error {
	_, err := c.askWithin(answerTime, request{Do: doQuit})
	return err
}

// Known reports whether a run was ever given to Start.
func (c *Client) Known(run string) (bool, error) {
	_, err := c.askWithin(patience, request{Do: doKnown, Run: run})
	if errors.Is(err, runner.ErrUnknown) {
		return false, nil
	}
	return err == nil, err
}

// Follow sends the end of a run once, and closes the channel. It returns an error that wraps runner.ErrUnknown when the
// run is not known: a run that was ordered and is not known never started. After Close, or when another server has
// taken over, the channel is closed without an end, or the error wraps runner.ErrLeft. Follow waits for a supervisor
// that cannot be reached or does not answer. Until then this process holds the FIFO of the run, so that the last output
// of the command is not lost when the command ends while there is no supervisor.
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

// askWithin is askSupervisor for requests that the supervisor answers at once. A request that was sent is still
// carried out after the time is over.
func (c *Client) askWithin(t time.Duration, q request) (*reply, error) {
	ctx, done := context.WithTimeout(c.ctx, t)
	defer done()
	return c.askSupervisor(ctx, q, false)
}

// askSupervisor sends a request, and sends it again when the connection broke before an answer came. If no supervisor
// can be reached, it returns an error; but it keeps trying if need is true, or if a start may have been carried out.
// After Close errors wrap runner.ErrLeft; errSilent says that ctx was done before the answer.
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
