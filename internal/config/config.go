// Package config turns the one strict YAML file into the immutable form that
// the server works by. It reports all that is wrong at once, each at its line
// and column, and yields nothing unless all is right.
package config

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
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
	"sallyport/internal/keyuse"
	"sallyport/internal/pathsafe"
	"sallyport/runner/hook"
)

// maxFile bounds the file. Ten thousand hooks take a tenth of it.
const maxFile = 16 << 20

// File is the configuration file as it is written. Its keys, and those of all
// that it holds, are described in docs/configuration.md.
type File struct {
	Listen  string                 `yaml:"listen"` // host:port; default ":8443"
	State   string                 `yaml:"state"`  // a folder, relative to the file; required
	TLS     certs.Spec             `yaml:"tls"`
	Limits  Limits                 `yaml:"limits"`
	Drain   time.Duration          `yaml:"drain"`   // how long runs may go on after SIGTERM; default 30s
	Outputs hook.Size              `yaml:"outputs"` // what all outputs together may take of the disk; default 10GiB
	Metrics *Metrics               `yaml:"metrics"` // default: none are served
	Audit   Audit                  `yaml:"audit"`
	Callers map[string]*CallerSpec `yaml:"callers"`
	Hooks   map[string]*hook.Spec  `yaml:"hooks"`
}

// CallerSpec is a caller: its credentials, how often it may come, and whether
// anything comes of it.
type CallerSpec struct {
	auth.CallerSpec `yaml:",inline"`

	Limit   *Limit `yaml:"limit"`   // default: limits.caller
	Observe bool   `yaml:"observe"` // what it sends is verified and reported, and starts nothing
}

// Metrics says who may read /metrics.
type Metrics struct {
	Callers []string `yaml:"callers"`
}

// Audit says how decisions are recorded.
type Audit struct {
	Keep     hook.Size     `yaml:"keep"`      // what all lines together may take of the disk; default 1GiB
	LeastAge time.Duration `yaml:"least_age"` // of a line about what was allowed that is removed; default 30 days (720h)
	Key      string        `yaml:"key"`       // file with the private key that checkpoints are signed with; default: one of the server's own
}

// Limits bounds what may come, and how often.
type Limits struct {
	Address  Limit `yaml:"address"`  // of one address, before any work; default 20/s, burst 100
	Failures Limit `yaml:"failures"` // of one address, refused with 401; default 10/m, burst 20
	Caller   Limit `yaml:"caller"`   // of a caller that has none of its own; default 60/m, burst 30

	Connections           int `yaml:"connections"`             // open at once; default 1024
	ConnectionsPerAddress int `yaml:"connections_per_address"` // of them, from one address; default 64
}

// Env is what Load would otherwise ask the world for.
type Env struct {
	Getenv func(string) (string, bool) // os.LookupEnv in the program
	Now    time.Time

	// Serving is the configuration that is in force, which the new one is to
	// follow while the server runs; nil at the start.
	Serving *Config
	// Workloads are the SPIFFE Workload APIs that are connected, whatever file
	// names them.
	Workloads *certs.Workloads
	// Seen takes down, unless it is nil, which files were read and what they
	// were before; nil for one that is not there.
	Seen map[string]fs.FileInfo
	// Uses is where uses of keys are noted; nil for nowhere. It goes into the
	// Config as it is, and outlives it.
	Uses *keyuse.Table
	// Renewals are the certificates that are obtained, whatever file asks for them.
	Renewals *certs.Renewals
}

// Retain ends what was begun for other configurations than c, which is the one in
// force, and begins to obtain the certificates that c asks for.
func (e Env) Retain(c *Config) {
	e.Workloads.Retain(c.SPIFFE)
	e.Renewals.Use(c.ACME)
}

// Config is a configuration without a fault. It is never changed.
type Config struct {
	Listen       string
	State        string // relative to the working directory, or absolute
	TLS          *tls.Config
	ACME         *certs.ACME // nil without
	Limits       Limits
	Drain        time.Duration
	Outputs      hook.Size
	Audit        audit.Options
	Digest       string // SHA-256 of the file, in hex
	Auth         *auth.Callers
	CallerLimits map[string]Limit // of every caller
	Observed     map[string]bool  // callers whose deliveries start nothing
	Hooks        map[string]*hook.Hook
	Metrics      []string // callers that may read /metrics; nil if it is not served
	SPIFFE       string   // the socket of the Workload API, if one is named
	Uses         *keyuse.Table

	callers  map[string]*CallerSpec
	clients  *certs.Clients
	auditKey string // file
	expiries []certs.Expiry
}

// Expiries tells what of TLS ends when, the first first: what the server shows
// and what it trusts.
func (c *Config) Expiries() []certs.Expiry {
	return certs.Earliest(slices.Concat(c.expiries, c.clients.Expiries(), c.ACME.Expiries()))
}

// KeyExpiries tells which keys of callers end when.
func (c *Config) KeyExpiries() (all []certs.Expiry) {
	for _, k := range c.Auth.Keys() {
		if !k.NotAfter.IsZero() {
			all = append(all, certs.Expiry{What: "key", File: "callers." + k.Caller + "." + k.Kind, Subject: k.ID, NotAfter: k.NotAfter})
		}
	}
	return all
}

// Hook returns a hook by its name.
func (c *Config) Hook(name string) (*hook.Hook, bool) {
	h, ok := c.Hooks[name]
	return h, ok
}

// HasName tells whether the server has a certificate for a host name or an address.
func (c *Config) HasName(host string) bool {
	if c.ACME != nil && slices.Contains(c.ACME.Domains, strings.ToLower(host)) {
		return true
	}
	return slices.ContainsFunc(c.TLS.Certificates, func(pair tls.Certificate) bool {
		return pair.Leaf.VerifyHostname(host) == nil
	})
}

// Load reads the file called name, and everything that it names. The Config is
// nil if any of the diagnostics, which are in the order of the file, is more
// than a warning.
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
	c.Digest = r.digest
	return c, r.sortedDiagnostics()
}

// openFile reads the file and takes it apart. The File is nil if it cannot be.
func openFile(name string, p *diag.List) (*File, *report) {
	r := &report{file: name, places: map[string]place{}, broken: map[string]bool{}}
	info, _ := os.Stat(name) // nil if it is not there
	p.Saw(name, info)
	data, faults, err := pathsafe.ReadTrusted(name, name, maxFile, 0o022)
	if err != nil {
		r.addDiagnostic(place{}, "", fmt.Sprintf("reading configuration: %v", err))
	}
	for _, fault := range faults {
		r.addDiagnostic(place{}, "", fault)
	}
	sum := sha256.Sum256(data)
	r.digest = hex.EncodeToString(sum[:])
	f := new(File)
	if data == nil || !decode(data, f, r) {
		return nil, r
	}
	return f, r
}

// compile checks what the shape of the file leaves open. dir is the folder of the
// file. The result is of use only if p has no error. A step that depends on
// another takes its result as an argument; the order of the diagnostics is that
// of the file, whatever the order of the steps.
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
		Listen: f.Listen, State: state, Limits: f.Limits, Drain: f.Drain, Outputs: f.Outputs,
		TLS:          material.server,
		ACME:         material.acme,
		Audit:        f.Audit.compile(state, sources, p.At("audit")),
		Auth:         callers,
		CallerLimits: f.callerLimits(),
		Observed:     f.observedCallers(),
		Hooks:        f.compileHooks(p.At("hooks")),
		Metrics:      f.metricsCallers(),
		Uses:         env.Uses,
		callers:      f.Callers, clients: material.clients, auditKey: f.Audit.Key, expiries: material.expiries,
	}
	if f.TLS.SPIFFE != nil {
		c.SPIFFE = f.TLS.SPIFFE.Socket
	}
	f.checkReferences(p)
	f.checkSecrets(callers.SecretHeaders(), p.At("hooks"))
	if env.Serving != nil {
		c.checkUnchanged(env.Serving, p)
	}
	return c
}

// checkValues checks each value that means the same whatever the rest of the file says.
func (f *File) checkValues(p *diag.List) {
	checkListen(f.Listen, p.At("listen"))
	f.Limits.checkLimits(p.At("limits"))
	for name, caller := range f.Callers {
		at := p.At("callers", name)
		checkName(name, at)
		if caller == nil {
			continue
		}
		if caller.Observe {
			at.At("observe").Warnf("what this caller sends is verified and reported, and starts nothing")
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

// credentials returns what proves each caller; nil for a caller that the file says nothing of.
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
	for name := range f.Hooks {
		checkName(name, p.At(name))
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

// tlsMaterial is what TLS is made of.
type tlsMaterial struct {
	server   *tls.Config
	acme     *certs.ACME
	clients  *certs.Clients
	expiries []certs.Expiry
}

// loadTLS reads what TLS is made of, with the CAs and the certificates that callers name.
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

// checkUnchanged refuses what cannot change under a server that runs.
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

// checkSecrets keeps credentials from becoming parameters, which are recorded,
// logged and shown.
func (f *File) checkSecrets(headers []string, p *diag.List) {
	headers = append(headers, "Proxy-Authorization", "Cookie")
	for name, h := range f.Hooks {
		if h == nil {
			continue
		}
		for param, spec := range h.Params {
			if len(spec.From) == 2 && spec.From[0] == "header" && slices.Contains(headers, http.CanonicalHeaderKey(spec.From[1])) {
				p.At(name, "params", param, "from").Errorf("the header %s holds a credential, and parameters are recorded and shown", spec.From[1])
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

// minAudit is room for some thousand decisions.
const minAudit = 1 << 20

// compile checks the section. state is the state folder.
func (a *Audit) compile(state string, sources auth.Sources, p *diag.List) audit.Options {
	if a.Keep < minAudit {
		p.At("keep").Errorf("%s is too little: 1MiB or more", a.Keep)
	}
	if a.LeastAge < 0 {
		p.At("least_age").Errorf("%s is below nothing", a.LeastAge)
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

// checkReferences tells what the sections lack together.
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
			p.Index(i).Errorf("there is no caller %q", name)
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

// checkState judges the folder if it is there. A symlink to it is fine: that
// is what systemd makes of a StateDirectory with DynamicUser.
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
