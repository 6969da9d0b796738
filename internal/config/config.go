// Package config turns the one strict YAML file into the immutable form that
// the server works by. It reports all that is wrong at once, each at its line
// and column, and yields nothing unless all is right.
package config

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"syscall"
	"time"

	"sallyport/auth"
	"sallyport/certs"
	"sallyport/internal/problem"
	"sallyport/runner"
)

// maxFile bounds the file. Ten thousand hooks take a tenth of it.
const maxFile = 16 << 20

// File is the configuration file as it is written. Its keys, and those of all
// that it holds, are described in docs/configuration.md.
type File struct {
	Listen  string                      `yaml:"listen"` // host:port; default ":8443"
	State   string                      `yaml:"state"`  // a folder, relative to the file; required
	TLS     certs.Spec                  `yaml:"tls"`
	Limits  Limits                      `yaml:"limits"`
	Drain   time.Duration               `yaml:"drain"`   // how long runs may go on after SIGTERM; default 30s
	Outputs runner.Size                 `yaml:"outputs"` // what all outputs together may take of the disk; default 10GiB
	Callers map[string]*CallerSpec      `yaml:"callers"`
	Hooks   map[string]*runner.HookSpec `yaml:"hooks"`
}

// CallerSpec is a caller: its credentials, and how often it may come.
type CallerSpec struct {
	auth.CallerSpec `yaml:",inline"`

	Limit *Limit `yaml:"limit"` // default: limits.caller
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
}

// Config is a configuration without a fault. It is never changed.
type Config struct {
	Listen       string
	State        string // relative to the working directory, or absolute
	TLS          *tls.Config
	Limits       Limits
	Drain        time.Duration
	Outputs      runner.Size
	Auth         *auth.Callers
	CallerLimits map[string]Limit // of every caller
	Hooks        map[string]*runner.Hook

	callers map[string]*CallerSpec
}

// Hook returns a hook by its name.
func (c *Config) Hook(name string) (*runner.Hook, bool) {
	h, ok := c.Hooks[name]
	return h, ok
}

// Load reads the file called name, and everything that it names. The Config is
// nil if any of the diagnostics, which are in the order of the file, is more
// than a warning.
func Load(name string, env Env) (*Config, []Diagnostic) {
	r := &report{file: name, places: map[string]place{}, broken: map[string]bool{}}
	var f File
	data, err := read(name)
	if err != nil {
		r.add(place{}, "", err.Error())
	}
	if data == nil || !decode(data, &f, r) {
		return nil, r.sorted()
	}
	var p problem.List
	c := compile(&f, filepath.Dir(name), env, p.At())
	r.resolve(p.All())
	if r.bad() {
		return nil, r.sorted()
	}
	return c, r.sorted()
}

var errWritable = errors.New("this file may be changed by its group or by others, and it decides what runs: chmod go-w")

// read returns the content of the file, or nil. With errWritable it returns
// both, because what else is wrong is worth knowing at once.
func read(name string) ([]byte, error) {
	// O_NONBLOCK: a named pipe must not hold up the start.
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("reading configuration: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading configuration: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("this is not a regular file")
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading configuration: %w", err)
	case len(data) > maxFile:
		return nil, fmt.Errorf("this file is over %d MiB", maxFile>>20)
	case info.Mode()&0o022 != 0:
		return data, errWritable
	}
	return data, nil
}

// compile checks what the shape of the file leaves open. dir is where the file
// is. The result is of use only if p is not bad.
func compile(f *File, dir string, env Env, p *problem.List) *Config {
	f.fillDefaults()
	checkListen(f.Listen, p.At("listen"))
	f.Limits.check(p.At("limits"))
	c := &Config{
		Listen: f.Listen, State: f.State, Limits: f.Limits, Drain: f.Drain, Outputs: f.Outputs,
		TLS:          certs.Load(f.TLS, dir, env.Now, p.At("tls")),
		CallerLimits: make(map[string]Limit, len(f.Callers)),
		callers:      f.Callers,
	}
	if !filepath.IsAbs(c.State) {
		c.State = filepath.Join(dir, c.State)
	}
	checkState(f.State, c.State, p.At("state"))

	specs := make(map[string]*auth.CallerSpec, len(f.Callers))
	for name, caller := range f.Callers {
		checkName(name, p.At("callers", name))
		c.CallerLimits[name] = f.Limits.Caller
		if specs[name] = nil; caller == nil {
			continue
		}
		specs[name] = &caller.CallerSpec
		if caller.Limit != nil {
			c.CallerLimits[name] = caller.Limit.orDefault(f.Limits.Caller)
			c.CallerLimits[name].check(p.At("callers", name, "limit"))
		}
	}
	c.Auth = auth.Compile(specs, auth.Sources{Dir: dir, Getenv: env.Getenv}, p.At("callers"))
	for name := range f.Hooks {
		checkName(name, p.At("hooks", name))
	}
	c.Hooks = runner.Compile(f.Hooks, slices.Collect(maps.Keys(f.Callers)), p.At("hooks"))
	f.checkUse(p)
	f.checkSecrets(c.Auth.SecretHeaders(), p.At("hooks"))
	return c
}

// checkSecrets keeps credentials from becoming parameters, which are recorded,
// logged and shown.
func (f *File) checkSecrets(headers []string, p *problem.List) {
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

// checkUse tells what the sections lack together.
func (f *File) checkUse(p *problem.List) {
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
	if len(f.Callers) == 0 && !open {
		p.At("callers").Errorf("are missing: without a caller nobody may start anything")
	}
	for name, caller := range f.Callers {
		if !used[name] {
			p.At("callers", name).Warnf("no hook names this caller")
		}
		if caller != nil && caller.MTLS != nil && f.TLS.ClientCA == "" {
			p.At("callers", name, "mtls").Errorf("needs tls.client_ca: without it no client is asked for a certificate")
		}
	}
}

var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

func checkName(name string, p *problem.List) {
	if !nameForm.MatchString(name) {
		p.Errorf("%q is no name: a letter or digit, then up to 63 letters, digits and . _ -", name)
	}
}

var hostForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$`)

func checkListen(address string, p *problem.List) {
	host, port, err := net.SplitHostPort(address)
	if err == nil && host != "" && !hostForm.MatchString(host) {
		_, err = netip.ParseAddr(host)
	}
	if n, bad := strconv.ParseUint(port, 10, 16); err != nil || bad != nil || strconv.FormatUint(n, 10) != port {
		p.Errorf(`%q is no address to listen on: write ":8443", "127.0.0.1:8443" or "[::1]:8443"`, address)
	}
}

// checkState judges the folder if it is there. A symlink to it is fine: that
// is what systemd makes of a StateDirectory with DynamicUser.
func checkState(written, dir string, p *problem.List) {
	if written == "" {
		p.Errorf("is missing: the folder where runs are recorded")
		return
	}
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return // made by serve, with mode 0700
	case err != nil:
		p.Errorf("%v", err)
		return
	case !info.IsDir():
		p.Errorf("%s is not a folder", written)
		return
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		p.Errorf("%s may be entered by its group or by others (its mode is %04o); chmod 0700 it", written, mode)
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); !ok || int(owner.Uid) != os.Geteuid() {
		p.Errorf("%s belongs to another user than %d, as whom this runs", written, os.Geteuid())
	}
}
