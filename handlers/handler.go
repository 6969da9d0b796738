// Package handlers answers HTTP requests: deliveries to hooks, the API of runs, the probes, the metrics, and the API of
// local administrators. [New] returns a [Handler]. [Handler.Update] puts the next configuration into effect.
//
// A delivery is handled with one line for each step: by one function up to the permission, and from there by one for
// each hook of its path. Cheap checks come first, and no secret is used before authentication: route, body,
// authentication, limits, permission, handshake, conditions, parameters, start. A refusal reveals nothing of a later
// step. A request that fails a check gets an RFC 9457 problem. The reason is in the log under the request
// id. The answer to a refused credential contains no reason, and its time does not depend on the reason either.
//
// Everything that a sender without a valid credential can use is limited: rates per address and in total, memory for
// bodies, lines of the log. A panic ends only its request. If the audit log or the store fails, nothing is started.
//
// The callers come from package auth, and the runs from package runner. Only this package knows both. [WithAdmin] marks
// a request that came through the socket of local administrators.
package handlers

import (
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"sallyport/internal/audit"
	"sallyport/internal/config"
	"sallyport/internal/readiness"
	"sallyport/runner"
	"sallyport/runner/process/output"
)

// Outputs opens the output of a run, also while it is written. An error wraps runner.ErrUnknown or output.ErrNotKept
// if the output does not exist.
type Outputs func(run string) (*output.Reader, error)

// Handler answers all requests to the server, under the configuration in force.
type Handler struct {
	watcher *config.Watcher
	current atomic.Pointer[service]
}

// New returns a handler. outputs opens the output of a run, and /readyz uses check. A configuration that is loaded
// later takes effect with Update.
func New(
	conf *config.Watcher, run *runner.Runner, outputs Outputs, trail *audit.Log,
	check *readiness.Check, metrics http.Handler, now func() time.Time, log *slog.Logger,
) *Handler {
	h := &Handler{watcher: conf}
	h.current.Store(newService(conf.Get(), &service{
		shared: &shared{
			probes: &probes{runner: run, check: check, watcher: conf},
			runner: run, outputs: outputs, audit: trail, metrics: metrics, log: log, now: now, latest: h.current.Load,
			samples: newSamples(log), kept: newKept(conf.Get().State, log), proved: newProvedHosts(),
			ignored: newCounts[string](), ignoredBefore: newIgnoredDeliveries(), handshakes: newCounts[string](),
			outcomes: newCounts[HookOutcome](), refusals: newCounts[string](),
			gates: callerGates{reads: newGate(maxReads), followers: newGate(maxFollowers), waits: newGate(maxWaits)},
		},
		limits: &rateLimits{}, bodies: &bodyReader{}, delay: &uniformDelay{beats: newBeats()},
	}))
	return h
}

// Update puts the current configuration into effect for all requests from now on. Requests in progress keep the
// configuration that they began with, except those that follow an output. Update must not be called concurrently.
func (h *Handler) Update() { h.current.Store(newService(h.watcher.Get(), h.current.Load())) }

// Close logs how many lines were skipped since the last summary.
func (h *Handler) Close() { h.current.Load().samples.logSummary() }

// SkippedLines returns how many lines of the log were not written because there were too many of a kind.
func (h *Handler) SkippedLines() int { return h.current.Load().samples.skippedLines() }

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.current.Load().public.ServeHTTP(w, r)
}

// service answers requests under one configuration.
type service struct {
	*shared

	config      *config.Config
	endpoints   map[string]*endpoint // by path
	limits      *rateLimits
	bodies      *bodyReader
	credentials *credentials
	delay       *uniformDelay
	rights      runRights
	answers     *runAnswers
	public      http.Handler
	admin       http.Handler
}

// shared is the part of a service that does not depend on the configuration. It has many fields because it only joins
// its parts, each a separate type.
type shared struct {
	probes  *probes
	runner  *runner.Runner
	outputs Outputs
	audit   *audit.Log
	metrics http.Handler
	log     *slog.Logger
	now     func() time.Time
	latest  func() *service // under the configuration in force, for answers that last long
	samples *samples
	kept    *kept
	proved  *provedHosts
	gates   callerGates

	ignored, handshakes *counts[string]      // by hook
	outcomes            *counts[HookOutcome] // without those
	refusals            *counts[string]      // by reason
	ignoredBefore       *ignoredDeliveries
}

// newService returns the service under a configuration. It takes from old how much was spent of each limit that did
// not change.
func newService(c *config.Config, old *service) *service {
	s := &service{
		shared: old.shared, config: c, endpoints: groupByPath(c),
		limits: old.limits.carryOver(c, old.now),
		bodies: &bodyReader{room: old.bodies.room.carryOver(c.Hooks), proved: old.proved, now: old.now},
		delay:  &uniformDelay{callers: c.Auth, runner: old.runner, beats: old.delay.beats, now: old.now},
		rights: runRights{c},
		answers: &runAnswers{
			runner: old.runner, outputs: old.outputs, waits: old.gates.waits, latest: old.latest, now: old.now,
		},
	}
	s.credentials = &credentials{config: c, limits: s.limits, now: s.now}
	m := &middleware{shared: s.shared, addresses: s.limits.addresses}
	s.admin = m.wrapRouter((&adminAPI{config: c, runner: s.runner, answers: s.answers}).newRouter())
	m = &middleware{shared: s.shared, addresses: s.limits.addresses, endpoints: s.endpoints}
	s.public = m.wrapRouter(s.newRouter())
	return s
}
