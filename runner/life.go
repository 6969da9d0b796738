package runner

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"sallyport/internal/guard"
	"sallyport/runner/hook"
)

// Recover takes up what a server before this one left: runs that go on are
// followed, those that ended meanwhile are recorded with their true end, those
// that were recorded but never started are started, unless the machine was
// restarted since, and those that wait are started in their turn. It is called
// once, before the first Start.
func (r *Runner) Recover(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx) // the runs outlive it
	active, err := r.store.Active(ctx)
	if err != nil {
		return err
	}
	newest, _, err := r.store.List(ctx, Filter{Limit: 1})
	if err != nil {
		return err
	}
	for _, run := range slices.Concat(newest, active) {
		r.noteID(run.ID)
	}
	for _, run := range active {
		if run.State != Running {
			continue
		}
		r.hold()
		switch err := r.takeUp(ctx, run); {
		case errors.Is(err, ErrLeft):
			r.leave()
			return err
		case err != nil: // one run of which nothing can be learned now holds up no other
			r.log.Error("run not taken up yet; it is tried again", "run", run.ID, "hook", run.Hook, "error", err)
			go r.takeUpLater(ctx, run)
		}
	}
	err = r.promote(ctx)
	if errors.Is(err, ErrUnavailable) { // which keeps no server from following what runs
		r.log.Error("waiting runs not started", "error", err)
		r.promoteLater(ctx, allFlights, recordAgain)
		return nil
	}
	return err
}

// takeUp goes on with a run that is recorded as running. On an error nothing was
// done.
func (r *Runner) takeUp(ctx context.Context, run Run) error {
	known, err := r.procs.Known(run.ID)
	if err != nil {
		return err
	}
	switch {
	case known:
		r.log.Info("run adopted", "run", run.ID, "hook", run.Hook, "caller", run.Caller)
		r.mu.Lock()
		r.noteRecovered(run)
		r.mu.Unlock()
		r.airborne(run)
		go r.follow(ctx, run)
		if run.Wish != "" { // the server before may have gone before it saw to that
			go r.stopNow(run.ID, stopping{run.Wish, -1})
		}
	case run.Boot == "" || run.Boot != r.boot:
		go r.interrupt(ctx, run)
	default: // the server before stopped between the record and the start
		r.launchStored(ctx, run)
	}
	return nil
}

// takeUpLater is takeUp, repeated until it succeeds or the next server does it.
func (r *Runner) takeUpLater(ctx context.Context, run Run) {
	for {
		<-time.After(recordAgain)
		if r.isGoing() {
			r.leave()
			return
		}
		if r.takeUp(ctx, run) == nil {
			return
		}
	}
}

// interrupt ends a run that was ordered before the machine was started again. Its folder is not synced, so it may
// be missing although the command ran: to start it now could run it twice.
func (r *Runner) interrupt(ctx context.Context, run Run) {
	r.log.Warn("run interrupted: the machine was restarted after the run was ordered", "run", run.ID, "hook", run.Hook, "caller", run.Caller)
	r.finish(ctx, run, Interrupted, End{Ended: r.now(), Reason: Interrupted}, false)
}

// hold counts a run that is launched or followed here, until leave.
func (r *Runner) hold() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.active++
}

// mostReruns bounds how often an interrupted run is started again by itself: a
// command that brings the machine down must not do so for ever.
const mostReruns = 3

// rerunInterrupted queues a run again whose end nobody saw, where its hook says
// that this is safe. It may be repeated: the claim keeps a run from being
// queued twice, by another server too.
func (r *Runner) rerunInterrupted(ctx context.Context, run Run) error {
	h, ok := r.hook(run.Hook)
	if !ok || !h.RerunInterrupted || run.Attempt >= mostReruns {
		return nil
	}
	in, err := r.store.Feed(ctx, run.ID)
	if err != nil {
		return err
	}
	again, err := r.newRun(Delivery{Hook: h, Caller: run.Caller, Values: run.Params, RerunOf: run.ID})
	if err != nil {
		return err
	}
	again.Flight, again.Attempt = run.Flight, run.Attempt+1
	p := hook.Policy{Kind: hook.Queue, Depth: hook.MaxQueue * 2}
	if h.Busy.Kind == hook.Join || h.Busy.Kind == hook.Replace {
		p.Depth = 1 // what waits is newer, and stands for this run
	}
	// Keys of deliveries are digests, so no sender can take this one.
	_, err = r.store.Admit(ctx, again, Claim{Key: "interrupted " + run.ID}, p, in)
	var done *Replayed
	var newer *Busy
	switch {
	case errors.As(err, &done):
		return nil
	case errors.As(err, &newer):
		r.log.Info("interrupted run not queued again: others wait", "run", run.ID)
		return nil
	case err == nil:
		r.log.Info("interrupted run queued again", "run", run.ID, "as", again.ID, "attempt", again.Attempt)
	}
	return err
}

// ExpireQueued ends the runs of the hooks that have waited longer than their
// hook allows.
func (r *Runner) ExpireQueued(ctx context.Context, hooks map[string]*hook.Hook) error {
	for name, h := range hooks {
		if h.QueueTimeout == 0 {
			continue
		}
		expired, err := r.store.ExpireQueued(ctx, name, h.QueueTimeout)
		if err != nil {
			return err
		}
		for _, run := range expired {
			r.log.Warn("run expired in the queue", "run", run.ID, "hook", name, "caller", run.Caller)
			r.tell(run.ID)
		}
	}
	return nil
}

// Drain takes no more deliveries and returns when no run is under way. Runs
// that are when ctx is done are stopped: TERM, their hook's grace, KILL. What
// is queued stays queued, for the next server.
func (r *Runner) Drain(ctx context.Context) {
	r.mu.Lock()
	r.takeNoMore()
	r.mu.Unlock()
	if r.idle(ctx) {
		return
	}
	r.stopAll(-1)
	ctx = context.WithoutCancel(ctx)
	for idle := false; !idle && r.Answers(ctx); { // who does not answer ends nothing, and tells of no end
		idle = r.idleSoon(ctx)
	}
}

// Leave takes no more deliveries, and once it returns nothing more is ordered:
// the next server may have the record. Runs go on, and that server takes them
// up; who waits for one is answered as it stands. An order that is not answered
// is not awaited for ever: whoever connects to the supervisor next learns what
// became of it.
func (r *Runner) Leave() {
	r.mu.Lock()
	r.takeNoMore()
	r.left = true
	for id, done := range r.done {
		close(done)
		delete(r.done, id)
	}
	r.mu.Unlock()
	answered := make(chan struct{})
	go func() { r.ordering.Wait(); close(answered) }()
	select {
	case <-answered:
	case <-time.After(answerTime):
	}
}

// isGoing tells whether nobody here waits for what cannot be recorded now.
func (r *Runner) isGoing() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.left || r.stopped != nil
}

func (r *Runner) isLeft() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.left
}

// idle waits until nothing is under way, and reports false if ctx was done first.
func (r *Runner) idle(ctx context.Context) bool {
	for {
		r.mu.Lock()
		active, changed := r.active, r.changed
		r.mu.Unlock()
		if active == 0 {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

func (r *Runner) idleSoon(ctx context.Context) bool {
	ctx, stop := context.WithTimeout(ctx, answerTime)
	defer stop()
	return r.idle(ctx)
}

// Kill takes no more deliveries and ends everything in the air at once, without
// grace.
func (r *Runner) Kill() {
	r.mu.Lock()
	r.takeNoMore()
	r.mu.Unlock()
	r.stopAll(0)
}

func (r *Runner) stopAll(grace time.Duration) {
	r.mu.Lock()
	killed := r.stopped != nil && *r.stopped == 0
	if killed || r.left { // then they are the next server's
		r.mu.Unlock()
		return
	}
	r.stopped = &grace // who takes off from now on sees this
	var runs []Run
	for _, run := range r.air {
		if r.up[run.ID] {
			runs = append(runs, run)
		}
	}
	r.mu.Unlock()
	var all sync.WaitGroup
	for _, run := range runs {
		r.log.Warn("run stopped: the server is going", "run", run.ID, "hook", run.Hook)
		all.Go(func() { r.stopNow(run.ID, stopping{Cancelled, grace}) })
	}
	all.Wait()
}

// takeNoMore turns deliveries away from now on. The caller holds mu.
func (r *Runner) takeNoMore() {
	if !r.draining {
		r.draining = true
		close(r.going)
	}
}

// Going is closed once deliveries are turned away.
func (r *Runner) Going() <-chan struct{} { return r.going }

// Draining tells whether deliveries are turned away.
func (r *Runner) Draining() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.draining
}

// question is one to the supervisor, and its answer once done is closed.
type question struct {
	done chan struct{}
	err  error
}

// Answers tells whether the supervisor answers before ctx is done. However many
// want to know, one question is under way.
func (r *Runner) Answers(ctx context.Context) bool {
	r.mu.Lock()
	q := r.asked
	if q == nil {
		q = &question{done: make(chan struct{})}
		r.asked = q
		go func() {
			_, q.err = guard.Call(r.log, r.procs.List)
			r.mu.Lock()
			r.asked = nil
			r.mu.Unlock()
			close(q.done)
		}()
	}
	r.mu.Unlock()
	select {
	case <-q.done:
		return q.err == nil
	case <-ctx.Done():
		return false
	}
}

// unknownRun is what a sender is told to wait when no run of the hook has
// ended yet.
const unknownRun = 10 * time.Second

// remaining estimates when a run will be over; at least one second.
func (r *Runner) remaining(run Run) time.Duration {
	left := unknownRun
	if took := r.took[run.Hook]; took != nil {
		left = took.median() - r.now().Sub(run.Started)
	}
	return max(left, time.Second)
}

func (r *Runner) estimate(run Run) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.remaining(run)
}

// expected estimates when a queued run will start: after the one in the air,
// and those before it in the queue.
func (r *Runner) expected(run Run, position int) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	each := unknownRun
	if took := r.took[run.Hook]; took != nil {
		each = took.median()
	}
	return r.remaining(r.air[run.Flight]) + time.Duration(max(position-1, 0))*each
}

// durations are how long the latest runs of a hook took.
type durations struct {
	ring [31]time.Duration
	n    int
}

func (d *durations) add(t time.Duration) {
	d.ring[d.n%len(d.ring)] = t
	d.n++
}

func (d *durations) median() time.Duration {
	known := slices.Clone(d.ring[:min(d.n, len(d.ring))])
	slices.Sort(known)
	return known[len(known)/2]
}
