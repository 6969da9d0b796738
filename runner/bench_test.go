package runner_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/store"
)

// commands replaces the supervisor and its processes: each command runs until the test ends it, even if the server
// ends. It counts violations: two commands of one flight at once, or a command that was started twice.
type commands struct {
	entered chan string   // when set: a start says so here,
	gate    chan struct{} // and waits for this

	listing chan struct{} // when set: List waits for this
	lists   atomic.Int64

	mu       sync.Mutex
	refuse   error // of Start
	refused  int   // how often
	lose     bool  // whether Follow knows nothing
	obey     bool  // whether a command ends when it is asked to
	hook     func(name string) (*hook.Hook, bool)
	air      map[string]string       // by run: its flight
	given    map[string]runner.Order // all that ever started
	ends     map[string]runner.End
	revoked  map[string]bool
	claimed  bool // whether Revoke comes too late, because the commands are being started
	follow   map[string][]chan runner.End
	overlaps int
	twice    int
	started  int
	stops    []stop
}

type stop struct {
	run   string
	why   runner.State
	grace time.Duration
}

func (c *commands) Start(o runner.Order) error {
	if c.gate != nil {
		c.entered <- o.Run
		<-c.gate
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refuse != nil {
		c.refused++
		return c.refuse
	}
	if c.revoked[o.Run] {
		return fs.ErrExist
	}
	if _, before := c.given[o.Run]; before {
		c.twice++
	}
	c.started++
	h, _ := c.hook(o.Hook) // which the runner has just found
	flight := h.Flight(o.Values)
	if slices.Contains(slices.Collect(maps.Values(c.air)), flight) {
		c.overlaps++
	}
	c.air[o.Run], c.given[o.Run] = flight, o
	return nil
}

func (c *commands) Known(run string) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, known := c.given[run]
	return known, nil
}

func (c *commands) Follow(run string) (<-chan runner.End, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ends := make(chan runner.End, 1)
	if e, ended := c.ends[run]; ended {
		ends <- e
		close(ends)
		return ends, nil
	}
	if _, up := c.air[run]; c.lose || !up {
		return nil, fmt.Errorf("following: %w", runner.ErrUnknown)
	}
	c.follow[run] = append(c.follow[run], ends)
	return ends, nil
}

func (c *commands) Stop(run string, why runner.State, grace time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.given[run]; !known {
		return errors.New("the run is unknown")
	}
	c.stops = append(c.stops, stop{run, why, grace})
	if c.obey {
		c.land(run, runner.End{Ended: time.Now(), Signal: "SIGTERM", Reason: why})
	}
	return nil
}

// Revoke ends a run, unless it was started. Start of the run fails from then on.
func (c *commands) Revoke(run string, why runner.State) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.given[run]; known || c.claimed {
		return false, nil
	}
	c.given[run] = runner.Order{Run: run}
	c.revoked[run] = true
	c.ends[run] = runner.End{Ended: time.Now(), Reason: why}
	return true, nil
}

func (c *commands) List() ([]string, error) {
	c.lists.Add(1)
	if c.listing != nil {
		<-c.listing
	}
	return nil, nil
}

// end ends a command.
func (c *commands) end(run string, e runner.End) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.land(run, e)
}

func (c *commands) land(run string, e runner.End) {
	if _, up := c.air[run]; !up {
		return
	}
	delete(c.air, run)
	c.ends[run] = e
	for _, ends := range c.follow[run] {
		ends <- e
		close(ends)
	}
}

// disconnect closes all channels of Follow without an end, as when the socket of the supervisor closes.
func (c *commands) disconnect() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for run, all := range c.follow {
		for _, ends := range all {
			close(ends)
		}
		delete(c.follow, run)
	}
}

func (c *commands) order(run string) runner.Order {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.given[run]
}

func (c *commands) stopped() []stop {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]stop(nil), c.stops...)
}

func (c *commands) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.started
}

func (c *commands) set(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
}

// disk is the real store on a disk that a test can make fail.
type disk struct {
	*store.SQLite
	mu   sync.Mutex
	gone bool
	half bool // no ends can be recorded
	asks int  // failed attempts
	gets int

	admitted, finished func() // when set, called after an Admit or a Finish
}

func (d *disk) unfinished(yes bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.half = yes
}

func (d *disk) refusals() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asks
}

func (d *disk) full(yes bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.gone = yes
}

func (d *disk) err(end bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gone || end && d.half {
		d.asks++
		return runner.ErrUnavailable
	}
	return nil
}

func (d *disk) Admit(ctx context.Context, r runner.Run, c runner.Claim, p hook.Policy, in runner.Feed) (runner.Admission, error) {
	if err := d.err(false); err != nil {
		return runner.Admission{}, err
	}
	a, err := d.SQLite.Admit(ctx, r, c, p, in)
	if d.admitted != nil {
		d.admitted()
	}
	return a, err
}

func (d *disk) Finish(
	ctx context.Context, id string, s runner.State, e runner.End, c runner.AfterClaims, q runner.AfterQueue,
) (runner.Run, *runner.Run, error) {
	if err := d.err(true); err != nil {
		return runner.Run{}, nil, err
	}
	ended, next, err := d.SQLite.Finish(ctx, id, s, e, c, q)
	if d.finished != nil {
		d.finished()
	}
	return ended, next, err
}

func (d *disk) FinishAndRetry(
	ctx context.Context, run runner.Run, e runner.End, again runner.Attempt, q runner.AfterQueue,
) (runner.Run, *runner.Run, error) {
	if err := d.err(true); err != nil {
		return runner.Run{}, nil, err
	}
	ended, next, err := d.SQLite.FinishAndRetry(ctx, run, e, again, q)
	if d.finished != nil {
		d.finished()
	}
	return ended, next, err
}

func (d *disk) Promote(ctx context.Context, flights ...string) ([]runner.Run, error) {
	if err := d.err(true); err != nil {
		return nil, err
	}
	return d.SQLite.Promote(ctx, flights...)
}

func (d *disk) Get(ctx context.Context, id string) (runner.Run, error) {
	if err := d.err(false); err != nil {
		return runner.Run{}, err
	}
	run, err := d.SQLite.Get(ctx, id)
	d.mu.Lock()
	d.gets++
	d.mu.Unlock()
	return run, err
}

func (d *disk) looks() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.gets
}

func (d *disk) Feed(ctx context.Context, id string) (runner.Feed, error) {
	if err := d.err(false); err != nil {
		return runner.Feed{}, err
	}
	return d.SQLite.Feed(ctx, id)
}

// faultLog counts the faults that are logged, for example a run that goes to a phase that cannot follow its own.
type faultLog struct {
	slog.Handler

	faults atomic.Int64
}

// Enabled implements slog.Handler.
func (*faultLog) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements slog.Handler.
func (l *faultLog) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "fault" {
		l.faults.Add(1)
	}
	return nil
}

// bench is a runner with test commands and a real store, and a clock that the test sets.
type bench struct {
	*commands
	*runner.Runner
	disk  *disk
	log   *faultLog
	dir   string
	mu    sync.Mutex
	clock time.Time
	hooks map[string]*hook.Hook
}

func newBench(t *testing.T, hooks ...*hook.Hook) *bench {
	t.Helper()
	b := &bench{
		commands: &commands{
			air: map[string]string{}, given: map[string]runner.Order{}, ends: map[string]runner.End{}, revoked: map[string]bool{},
			follow: map[string][]chan runner.End{},
		},
		log:   &faultLog{Handler: slog.DiscardHandler},
		clock: time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC),
		dir:   folder(t, 0o700),
	}
	b.commands.hook = b.hook
	b.use(hooks...)
	b.open(t)
	t.Cleanup(func() {
		b.close(t)
		if n := b.log.faults.Load(); n > 0 {
			t.Errorf("%d faults were logged", n)
		}
	})
	return b
}

// use loads another configuration.
func (b *bench) use(hooks ...*hook.Hook) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hooks = map[string]*hook.Hook{}
	for _, h := range hooks {
		b.hooks[h.Name] = h
	}
}

func (b *bench) hook(name string) (*hook.Hook, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	h, ok := b.hooks[name]
	return h, ok
}

func (b *bench) open(t *testing.T) {
	t.Helper()
	s, err := store.Open(context.WithoutCancel(t.Context()), b.dir, b.now, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s.Uptime = func() time.Duration { return b.now().Sub(time.Unix(0, 0)) }
	b.disk = &disk{SQLite: s}
	b.Runner = runner.New(b.disk, b.commands, b.hook, b.now, slog.New(b.log))
}

func (b *bench) close(t *testing.T) {
	t.Helper()
	if err := b.disk.Close(); err != nil {
		t.Error(err)
	}
	b.Leave() // the store is closed already, so this has no visible effect
}

// crash ends the server without a drain. The commands continue.
func (b *bench) crash(t *testing.T) {
	t.Helper()
	b.close(t)
	b.open(t)
}

func (b *bench) recover(t *testing.T) {
	t.Helper()
	if err := b.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) now() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.clock
}

func (b *bench) pass(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clock = b.clock.Add(d)
}

// lookUp looks up the claim of a delivery, as handlers do before they start it.
func (b *bench) lookUp(d runner.Delivery) runner.Delivery {
	d.Repeated = b.Runner.FindRepeated(context.Background(), d.Hook.Name, d.Claim)
	return d
}

func (b *bench) Start(d runner.Delivery) (runner.Run, error) {
	s, err := b.Runner.Start(context.Background(), b.lookUp(d))
	return s.Run, err
}

func (b *bench) start(t *testing.T, d runner.Delivery) runner.Run {
	t.Helper()
	run, err := b.Start(d)
	if err != nil || run.State != runner.Running {
		t.Fatalf("not started: %v, %v", run.State, err)
	}
	return run
}

// queue sends a delivery that is queued.
func (b *bench) queue(t *testing.T, d runner.Delivery) runner.Started {
	t.Helper()
	s, err := b.Runner.Start(t.Context(), b.lookUp(d))
	if err != nil || s.Run.State != runner.Queued {
		t.Fatalf("not queued: %v, %v", s.Run.State, err)
	}
	return s
}

// admit records a run, like a server that ends before it starts the run.
func (b *bench) admit(t *testing.T, h *hook.Hook, x string, in runner.Feed) (id string) {
	t.Helper()
	a, err := b.disk.SQLite.Admit(t.Context(), runner.Run{
		ID: uuid.Must(uuid.NewV7()).String(), Hook: h.Name, Caller: "ci", Flight: h.Flight(hook.Values{"x": x}),
		Params: hook.Values{"x": x}, Created: b.now(),
	}, runner.Claim{}, h.Busy, in)
	if err != nil {
		t.Fatal(err)
	}
	return a.Run.ID
}

// finish ends a run with an exit code and waits until the end is recorded.
func (b *bench) finish(t *testing.T, run runner.Run, code int) runner.Run {
	t.Helper()
	b.end(run.ID, runner.End{Ended: b.now(), ExitCode: &code})
	return b.ended(t, run)
}

func (b *bench) ended(t *testing.T, run runner.Run) runner.Run {
	t.Helper()
	run, err := b.Wait(t.Context(), run.ID)
	if err != nil || !run.State.Ended() {
		t.Fatalf("run %+v, %v", run, err)
	}
	return run
}

// state checks the state of a run in the store.
func (b *bench) state(t *testing.T, id string, want runner.State) runner.Run {
	t.Helper()
	run, err := b.Get(t.Context(), id)
	if err != nil || run.State != want {
		t.Errorf("run is %s (%v), want %s", run.State, err, want)
	}
	return run
}

// until waits until a condition is true.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	patience := time.After(time.Minute)
	for !done() {
		select {
		case <-tick.C:
		case <-patience:
			t.Fatal("never: " + what)
		}
	}
}

// flies waits until the command of a run is started.
func (b *bench) flies(t *testing.T, id string) runner.Order {
	t.Helper()
	until(t, "run "+id+" starts", func() bool {
		b.commands.mu.Lock()
		defer b.commands.mu.Unlock()
		_, up := b.air[id]
		return up
	})
	return b.order(id)
}

// await waits for n stops.
func (b *bench) await(t *testing.T, n int) {
	t.Helper()
	until(t, "a stop", func() bool { return len(b.stopped()) >= n })
}
