// Package config reads the YAML configuration file strictly, and makes the immutable configuration that the server
// works with.
//
// [Load] returns a [Config], or, if there is any error, only the problems: all of them at once, each a [Diagnostic]
// with its line and column. So a configuration is never in force in part, and never checks less than the file asks for.
// A warning does not keep the server from starting. [Config.Describe] prints what a configuration would serve.
//
// A [Watcher] holds the configuration in force. It notices when the file, or a file that it names, changes, loads all
// of it again, and replaces the whole configuration or nothing. It retries a configuration that was refused, because a
// certificate may become valid, or a disk have room, without a change of a file.
//
// The supervisor reads the same file with [LoadHooks], so that the server cannot make it start anything else.
package config

import (
	"bytes"
	"crypto/ed25519"
	"crypto/tls"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"sallyport/auth"
	"sallyport/auth/jwt/keyset"
	"sallyport/certs"
	"sallyport/internal/audit"
	"sallyport/internal/diag"
	"sallyport/internal/httpsurl"
	"sallyport/internal/keyuse"
	"sallyport/internal/logging"
	"sallyport/internal/pathsafe"
	"sallyport/runner/hook"
)

// maxFile is the maximum size of the file. Ten thousand hooks take a tenth of it.
const maxFile = 16 << 20

// File is the content of the configuration file. docs/configuration.md describes its keys, and those of its parts.
type File struct {
	URL     string                 `yaml:"url"`     // of the server as its senders see it, for links to runs; or empty
	Listen  string                 `yaml:"listen"`  // host:port; default ":8443"
	State   string                 `yaml:"state"`   // folder, relative to the file; required
	Include []string               `yaml:"include"` // files with more callers and hooks, or patterns of their names
	TLS     certs.Spec             `yaml:"tls"`
	Limits  Limits                 `yaml:"limits"`
	Drain   time.Duration          `yaml:"drain"`           // how long runs may continue after SIGTERM; default 30s
	Outputs hook.Size              `yaml:"outputs"`         // maximum disk space of all outputs together; default 10GiB
	Keep    time.Duration          `yaml:"keep_deliveries"` // how long deliveries are kept for try; default: none is
	Metrics *Metrics               `yaml:"metrics"`         // default: /metrics is not served
	Log     Log                    `yaml:"log"`
	Audit   Audit                  `yaml:"audit"`
	Callers map[string]*CallerSpec `yaml:"callers"`
	Hooks   map[string]*hook.Spec  `yaml:"hooks"`
}

// CallerSpec is a caller: its credentials, the limit of its requests, and whether its deliveries start runs.
type CallerSpec struct {
	auth.CallerSpec `yaml:",inline"`

	Limit   *Limit `yaml:"limit"`   // default: limits.caller
	Observe bool   `yaml:"observe"` // its deliveries are verified and logged, but start nothing
}

// Metrics names the callers that may read /metrics.
type Metrics struct {
	Callers []string `yaml:"callers"`
}

// Log configures the log of the server and of the supervisor.
type Log struct {
	Level  string `yaml:"level"`  // debug, info, warn or error; default info
	Format string `yaml:"format"` // json, text or terminal; default: terminal on a terminal, json elsewhere
}

// Audit configures the audit log.
type Audit struct {
	Keep     hook.Size     `yaml:"keep"`      // maximum disk space of all lines together; default 1GiB
	LeastAge time.Duration `yaml:"least_age"` // minimum age of removed lines about what was allowed; default 720h
	Key      string        `yaml:"key"`       // private key file for checkpoints; default: the server makes a key
}

// Limits bounds the connections and the rates of requests.
type Limits struct {
	Address  Limit `yaml:"address"`  // requests from one address, checked first; default 20/s, burst 100
	Failures Limit `yaml:"failures"` // requests from one address that are refused with 401; default 10/m, burst 20
	Caller   Limit `yaml:"caller"`   // requests of a caller without a limit in the file; default 60/m, burst 30

	Connections           int `yaml:"connections"`             // open connections; default 1024
	ConnectionsPerAddress int `yaml:"connections_per_address"` // open connections from one address; default 64
}

// Env is the input of Load in addition to the file: the environment, the time, and objects that outlive a
// configuration.
type Env struct {
	Getenv func(string) (string, bool) // os.LookupEnv in the program
	Now    time.Time

	// Serving is the configuration in force, which the new one shall replace while the server runs. It is nil at the
	// start.
	Serving *Config
	// Workloads are the connections to SPIFFE Workload APIs. All configurations share them.
	Workloads *certs.Workloads
	// Seen, unless it is nil, receives the files that Load reads, with their state before that; nil for a file that
	// does not exist.
	Seen map[string]fs.FileInfo
	// Uses records the uses of keys; nil: they are not recorded. The Config holds the same table, which outlives it.
	Uses *keyuse.Table
	// Renewals obtain certificates. All configurations share them.
	Renewals *certs.Renewals
}

// Retain ends the connections and renewals that only other configurations than c need, and begins to obtain the
// certificates of c. c is the configuration in force.
func (e Env) Retain(c *Config) {
	e.Workloads.Retain(c.SPIFFE)
	e.Renewals.Use(c.ACME)
}

// Config is a configuration without errors. It is never changed. It has many fields because each is a setting of the
// file, or what was compiled from one.
type Config struct {
	URL          string // empty if the file has none
	Listen       string
	State        string // relative to the working directory, or absolute
	TLS          *tls.Config
	ACME         *certs.ACME // nil without tls.acme
	Limits       Limits
	Drain        time.Duration
	Outputs      hook.Size
	Keep         time.Duration // of deliveries; zero: none is kept
	Audit        audit.Options
	Digest       string // SHA-256 of the file, in hex, or of the list that sha256sum prints if it includes others
	Auth         *auth.Callers
	CallerLimits map[string]Limit // by caller; each caller has an entry
	Observed     map[string]bool  // callers that are only observed: their deliveries start nothing
	Hooks        map[string]*hook.Hook
	Metrics      []string // callers that may read /metrics; nil if it is not served
	Log          logging.Settings
	SPIFFE       string // the socket of the Workload API; empty: none
	Uses         *keyuse.Table

	included []string // files
	callers  map[string]*CallerSpec
	clients  *certs.Clients
	auditKey string // the file of Audit.Key
	expiries []certs.Expiry
}

// Expiries lists the certificates, CAs and CRLs of TLS by expiry, soonest first: those of the server and those that it
// trusts.
func (c *Config) Expiries() []certs.Expiry {
	return certs.Earliest(slices.Concat(c.expiries, c.clients.Expiries(), c.ACME.Expiries()))
}

// KeyExpiries lists the keys of callers that expire.
func (c *Config) KeyExpiries() (all []certs.Expiry) {
	for _, k := range c.Auth.Keys() {
		if !k.NotAfter.IsZero() {
			file := "callers." + k.Caller + "." + k.Kind
			all = append(all, certs.Expiry{What: "key", File: file, Subject: k.ID, NotAfter: k.NotAfter})
		}
	}
	return all
}

// Hook returns the hook with this name.
func (c *Config) Hook(name string) (*hook.Hook, bool) {
	h, ok := c.Hooks[name]
	return h, ok
}

// HasName reports whether the server has a certificate for a host name or an address.
func (c *Config) HasName(host string) bool {
	if c.ACME != nil && slices.Contains(c.ACME.Domains, strings.ToLower(host)) {
		return true
	}
	return slices.ContainsFunc(c.TLS.Certificates, func(pair tls.Certificate) bool {
		return pair.Leaf.VerifyHostname(host) == nil
	})
}

// Load reads the file called name, and all files that it names. The diagnostics are in the order of the file. If one of
// them is an error, the Config is nil.
func Load(name string, env Env) (*Config, []Diagnostic) {
	var p diag.List
	f, r := openFile(name, &p)
	if env.Seen != nil {
		defer func() { maps.Copy(env.Seen, p.Files()) }()
	}
	if f == nil {
		return nil, r.sortedDiagnostics()
	}
	c := compile(f, filepath.Dir(name), env, p.At())
	r.addProblems(p.All())
	if r.hasErrors() {
		return nil, r.sortedDiagnostics()
	}
	c.Digest, c.included = r.digest, r.included
	return c, r.sortedDiagnostics()
}

// openFile reads and decodes the file, and the files that it includes. The File is nil if that fails.
func openFile(name string, p *diag.List) (*File, *report) {
	r := newReport(name)
	data := r.readTrusted(p)
	f := new(File)
	if data == nil || !decode(data, f, r) {
		return nil, r
	}
	f.readIncluded(r, len(data), p)
	return f, r
}

// compile checks what decoding has not checked. dir is the folder of the file. The result may only be used if p has no
// error. A step that depends on another takes its result as an argument. The order of the steps does not matter for the
// diagnostics, which are sorted by their place in the file.
func compile(f *File, dir string, env Env, p *diag.List) *Config {
	f.fillDefaults()
	f.checkValues(p)
	state := f.stateFolder(dir)
	checkState(f.State, state, p.At("state"))
	specs := f.credentials()
	material := loadTLS(f.TLS, auth.NameClientCertificates(specs, p.At("callers")), dir, state, env, p.At("tls"))
	sources := auth.Sources{
		Dir: dir, Getenv: env.Getenv, Saw: p.Saw, Clients: material.clients, Now: env.Now, KeySets: env.keySets(),
	}
	callers := auth.Compile(specs, sources, p.At("callers"))
	c := &Config{
		URL: f.URL, Listen: f.Listen, State: state, Limits: f.Limits, Drain: f.Drain, Outputs: f.Outputs, Keep: f.Keep,
		TLS:          material.server,
		ACME:         material.acme,
		Audit:        f.Audit.compile(state, sources, p.At("audit")),
		Auth:         callers,
		CallerLimits: f.callerLimits(),
		Observed:     f.observedCallers(),
		Hooks:        f.compileHooks(p.At("hooks")),
		Metrics:      f.metricsCallers(),
		Log:          f.Log.compile(p.At("log")),
		Uses:         env.Uses,
		callers:      f.Callers, clients: material.clients, auditKey: f.Audit.Key, expiries: material.expiries,
	}
	if f.TLS.SPIFFE != nil {
		c.SPIFFE = f.TLS.SPIFFE.Socket
	}
	f.checkReferences(p)
	f.checkSecrets(callers.SecretHeaders(), c.Hooks, p.At("hooks"))
	f.checkEvents(c.Hooks, p.At("hooks"))
	f.checkSignedConditions(c.Hooks, p.At("hooks"))
	if env.Serving != nil {
		c.checkUnchanged(env.Serving, p)
	}
	return c
}

// longestKeep is how long deliveries may be kept.
const longestKeep = 30 * 24 * time.Hour

// checkValues checks each value that can be checked without the rest of the file.
func (f *File) checkValues(p *diag.List) {
	checkURL(f.URL, p.At("url"))
	checkListen(f.Listen, p.At("listen"))
	f.Limits.checkLimits(p.At("limits"))
	if f.Keep < 0 || f.Keep > longestKeep {
		p.At("keep_deliveries").Errorf("%s is not a duration from 0 to %s: the files have credentials of senders",
			f.Keep, longestKeep)
	}
	for name, caller := range f.Callers {
		at := p.At("callers", name)
		checkName(name, at)
		if caller == nil {
			continue
		}
		if caller.Observe {
			at.At("observe").Warnf("deliveries of this caller are verified and logged, but start nothing")
		}
		if caller.Limit != nil {
			caller.Limit.orDefault(f.Limits.Caller).checkBurst(at.At("limit"))
		}
	}
}

func (f *File) stateFolder(dir string) string {
	if filepath.IsAbs(f.State) {
		return f.State
	}
	return filepath.Join(dir, f.State)
}

// credentials returns the credentials of each caller; nil for a caller with an empty entry in the file.
func (f *File) credentials() map[string]*auth.CallerSpec {
	specs := make(map[string]*auth.CallerSpec, len(f.Callers))
	for name, caller := range f.Callers {
		if specs[name] = nil; caller != nil {
			specs[name] = &caller.CallerSpec
		}
	}
	return specs
}

func (f *File) callerLimits() map[string]Limit {
	limits := make(map[string]Limit, len(f.Callers))
	for name, caller := range f.Callers {
		if limits[name] = f.Limits.Caller; caller != nil && caller.Limit != nil {
			limits[name] = caller.Limit.orDefault(f.Limits.Caller)
		}
	}
	return limits
}

func (f *File) observedCallers() map[string]bool {
	observed := map[string]bool{}
	for name, caller := range f.Callers {
		if caller != nil && caller.Observe {
			observed[name] = true
		}
	}
	return observed
}

func (f *File) metricsCallers() []string {
	if f.Metrics == nil {
		return nil
	}
	return f.Metrics.Callers
}

func (f *File) compileHooks(p *diag.List) map[string]*hook.Hook {
	for name, h := range f.Hooks {
		checkName(name, p.At(name))
		if h != nil {
			h.ServerURL = f.URL
		}
	}
	return hook.Compile(f.Hooks, slices.Collect(maps.Keys(f.Callers)), p)
}

// keySets returns the keys of issuers that the configuration in force has fetched.
func (e Env) keySets() map[keyset.Source]*keyset.Set {
	if e.Serving == nil {
		return nil
	}
	return e.Serving.Auth.KeySets()
}

// tlsMaterial is the TLS configuration of the server, and the objects that it is made of.
type tlsMaterial struct {
	server   *tls.Config
	acme     *certs.ACME
	clients  *certs.Clients
	expiries []certs.Expiry
}

// loadTLS reads the certificates, keys, CAs and CRLs for TLS, including the CAs and certificates that callers name.
func loadTLS(spec certs.Spec, named certs.Named, dir, state string, env Env, p *diag.List) tlsMaterial {
	renewals := env.Renewals
	if renewals == nil {
		renewals = certs.NewRenewals(slog.New(slog.DiscardHandler))
	}
	server, expiries := certs.Load(spec, dir, env.Now, p)
	acme := certs.LoadACME(spec.ACME, dir, state, renewals, env.Now, p.At("acme"))
	clients := certs.LoadClients(spec, named, dir, env.Now, env.Workloads, p)
	return tlsMaterial{acme.AddTo(clients.AddTo(server)), acme, clients, expiries}
}

// checkUnchanged refuses a change of values that cannot change while the server runs.
func (c *Config) checkUnchanged(old *Config, p *diag.List) {
	const text = "cannot change while the server runs (it has %q): restart it"
	if c.Listen != old.Listen {
		p.At("listen").Errorf(text, old.Listen)
	}
	if c.State != old.State {
		p.At("state").Errorf(text, old.State)
	}
	if !bytes.Equal(c.Audit.Key, old.Audit.Key) {
		p.At("audit", "key").Errorf("cannot change while the server runs: restart it")
	}
}

// checkSecrets refuses parameters and conditions that read a header with a credential, because parameters are recorded,
// logged and shown, and the answer to an ignored delivery has the value that was found.
func (f *File) checkSecrets(headers []string, hooks map[string]*hook.Hook, p *diag.List) {
	headers = append(headers, "Proxy-Authorization", "Cookie")
	for name, h := range f.Hooks {
		if h == nil {
			continue
		}
		for param, spec := range h.Params {
			source := "from"
			if spec.Expr != "" {
				source = "expr"
			}
			for _, header := range hooks[name].ParamHeaders(param) {
				if slices.Contains(headers, http.CanonicalHeaderKey(header)) {
					p.At(name, "params", param, source).Errorf("the header %s holds a credential, "+
						"and parameters are recorded and shown", header)
				}
			}
		}
		for _, c := range hooks[name].When() {
			for _, header := range c.Headers() {
				if slices.Contains(headers, http.CanonicalHeaderKey(header)) {
					c.At(p.At(name, "when")).Errorf("the header %s holds a credential, "+
						"and the value of a condition that does not hold is logged", header)
				}
			}
		}
	}
}

// checkEvents refuses a condition on the event name of a hook with a caller that has no event names: its deliveries
// would all be ignored.
func (f *File) checkEvents(hooks map[string]*hook.Hook, p *diag.List) {
	const instead = "write header.NAME, body.NAME, query.NAME or claim.NAME instead"
	for name, h := range hooks {
		i := slices.IndexFunc(h.When(), hook.Condition.IsOfEvent)
		if i < 0 {
			continue
		}
		at := h.When()[i].At(p.At(name, "when"))
		if h.Unauthenticated {
			at.Errorf("needs a caller with event names, and this hook has no callers: %s", instead)
		}
		for _, caller := range h.Callers {
			if spec := f.Callers[caller]; spec != nil && h.May(caller, hook.MayStart) && !spec.HasEvents() {
				at.Errorf("deliveries of the caller %s have no event name that the server knows: %s", caller, instead)
			}
		}
	}
}

// checkSignedConditions warns of a hook with conditions that only read what a signature may not cover.
func (f *File) checkSignedConditions(hooks map[string]*hook.Hook, p *diag.List) {
	for name, h := range hooks {
		isSigned := func(c hook.Condition) bool { return c.IsOfBody() || c.IsOfClaim() }
		if len(h.When()) == 0 || slices.ContainsFunc(h.When(), isSigned) {
			continue
		}
		for _, caller := range h.Callers {
			spec := f.Callers[caller]
			if spec != nil && spec.HMAC != nil && h.May(caller, hook.MayStart) {
				p.At(name, "when").Warnf("no condition reads the body, and the signature of the caller %s may cover "+
					"nothing else: a client that has seen a delivery can change the values of the conditions", caller)
			}
		}
	}
}

func (f *File) fillDefaults() {
	if f.Listen == "" {
		f.Listen = ":8443"
	}
	if f.Drain == 0 {
		f.Drain = 30 * time.Second
	}
	if f.Outputs == 0 {
		f.Outputs = 10 << 30
	}
	if f.Audit.Keep == 0 {
		f.Audit.Keep = 1 << 30
	}
	if f.Audit.LeastAge == 0 {
		f.Audit.LeastAge = 30 * 24 * time.Hour
	}
	l := &f.Limits
	l.Address = l.Address.orDefault(Limit{Rate: 20, Burst: 100})
	l.Failures = l.Failures.orDefault(Limit{Rate: 10.0 / 60, Burst: 20})
	l.Caller = l.Caller.orDefault(Limit{Rate: 1, Burst: 30})
	if l.Connections == 0 {
		l.Connections = 1024
	}
	if l.ConnectionsPerAddress == 0 {
		l.ConnectionsPerAddress = 64
	}
}

// minAudit is enough for some thousand decisions.
const minAudit = 1 << 20

// compile checks the section. state is the state folder.
func (a *Audit) compile(state string, sources auth.Sources, p *diag.List) audit.Options {
	if a.Keep < minAudit {
		p.At("keep").Errorf("%s is too small: write 1MiB or more", a.Keep)
	}
	if a.LeastAge < 0 {
		p.At("least_age").Errorf("%s is below zero", a.LeastAge)
	}
	return audit.Options{State: state, Keep: int64(a.Keep), LeastAge: a.LeastAge, Key: a.loadKey(sources, p.At("key"))}
}

func (a *Audit) loadKey(sources auth.Sources, p *diag.List) ed25519.PrivateKey {
	if a.Key == "" {
		return nil
	}
	text, err := sources.Secret(&auth.KeySpec{File: a.Key})
	if err != nil {
		p.Errorf("%v", err)
		return nil
	}
	key, err := audit.ParseKey(text)
	if err != nil {
		p.Errorf("%v", err)
	}
	return key
}

// checkReferences reports missing hooks and callers, references to unknown callers, and callers that are not used.
func (f *File) checkReferences(p *diag.List) {
	if len(f.Hooks) == 0 {
		p.At("hooks").Errorf("are missing: without a hook there is nothing to serve")
	}
	used := map[string]bool{}
	open := false
	for _, h := range f.Hooks {
		if h == nil {
			continue
		}
		open = open || h.Unauthenticated
		for _, g := range h.Callers {
			used[g.Caller] = true
		}
	}
	if f.Metrics != nil {
		f.Metrics.checkCallers(f.Callers, used, p.At("metrics", "callers"))
	}
	if len(f.Callers) == 0 && !open {
		p.At("callers").Errorf("are missing: without a caller no hook may be started")
	}
	for name := range f.Callers {
		if !used[name] {
			p.At("callers", name).Warnf("no hook names this caller")
		}
	}
}

func (m *Metrics) checkCallers(callers map[string]*CallerSpec, used map[string]bool, p *diag.List) {
	if len(m.Callers) == 0 {
		p.Errorf("name no caller, so none could read the metrics")
	}
	for i, name := range m.Callers {
		if _, ok := callers[name]; !ok {
			p.Index(i).Errorf("unknown caller %q", name)
		}
		used[name] = true
	}
}

var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

func checkName(name string, p *diag.List) {
	if !nameForm.MatchString(name) {
		p.Errorf("%q is not a name: a letter or digit, then up to 63 letters, digits and . _ -", name)
	}
}

// checkURL does not repeat the text, which may have a password.
func checkURL(text string, p *diag.List) {
	if text == "" {
		return
	}
	if _, err := httpsurl.Parse(text); err != nil {
		p.Errorf("%v: write https://hooks.example.com", err)
	} else if strings.ContainsAny(text, "?#") {
		p.Errorf("has a query or a fragment, and paths are added to it: write https://hooks.example.com")
	}
}

var hostForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$`)

func checkListen(address string, p *diag.List) {
	host, port, err := net.SplitHostPort(address)
	if err == nil && host != "" && !hostForm.MatchString(host) {
		_, err = netip.ParseAddr(host)
	}
	if n, bad := strconv.ParseUint(port, 10, 16); err != nil || bad != nil || strconv.FormatUint(n, 10) != port {
		p.Errorf(`%q is not an address to listen on: write ":8443", "127.0.0.1:8443" or "[::1]:8443"`, address)
	}
}

// checkState checks the folder if it exists. A symlink to it is allowed: systemd makes one for a StateDirectory with
// DynamicUser.
func checkState(written, dir string, p *diag.List) {
	if written == "" {
		p.Errorf("is missing: the folder where runs are recorded")
		return
	}
	switch why, err := pathsafe.CheckPrivate(dir); {
	case err != nil:
		p.Errorf("%v", err)
	case why != "":
		p.Errorf("%s: %s", written, why)
	}
}
