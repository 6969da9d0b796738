package certs

import (
	"crypto/tls"
	"log/slog"
	"net/mail"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/acme"

	"sallyport/internal/diag"
	"sallyport/internal/httpsurl"
)

// ACMESpec is the part of the tls section that has certificates obtained from
// a CA by ACME (RFC 8555), and renewed.
type ACMESpec struct {
	Domains   []string `yaml:"domains"`    // exact names, in ASCII
	Email     string   `yaml:"email"`      // for the CA to write to; optional
	Directory string   `yaml:"directory"`  // https URL; default: Let's Encrypt
	CA        string   `yaml:"ca"`         // PEM: who signs the directory's own certificate; default: the system's CAs
	AcceptTOS bool     `yaml:"accept_tos"` // that the CA's terms of service are agreed to
}

// ACME is what a configuration obtains. It is never changed; what has been
// obtained is with its renewals, which may be those of another configuration too.
type ACME struct {
	Directory string
	Domains   []string // in the order of the file
	renewals  map[string]*renewal
}

// LoadACME checks spec and returns what it asks for, or nil when that is
// nothing. state is the state folder, whose "acme" keeps accounts and
// certificates. What was obtained before is taken up, so that it can be shown
// at once; nothing is asked for before Renewals.Use.
func LoadACME(spec *ACMESpec, dir, state string, renewals *Renewals, now time.Time, p *diag.List) *ACME {
	if spec == nil {
		return nil
	}
	a := &ACME{Directory: spec.Directory, Domains: spec.Domains, renewals: map[string]*renewal{}}
	if a.Directory == "" {
		a.Directory = acme.LetsEncryptURL
	}
	before := errorCount(p)
	spec.check(p)
	roots := ""
	if spec.CA != "" {
		roots = string(Roots(spec.CA, dir, now, p.At("ca")))
	}
	if errorCount(p) > before {
		return nil
	}
	for _, domain := range a.Domains {
		a.renewals[domain] = renewals.of(order{
			domain: domain, email: spec.Email, directory: a.Directory, roots: roots,
			dir: filepath.Join(state, "acme", folder(a.Directory)),
		}, now)
	}
	return a
}

var domainForm = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`)

func (s *ACMESpec) check(p *diag.List) {
	if len(s.Domains) == 0 {
		p.At("domains").Errorf("are missing: which names to get certificates for")
	}
	for i, domain := range s.Domains {
		if !domainForm.MatchString(domain) || len(domain) > 253 {
			p.At("domains").Index(i).Errorf("%q is no name to get a certificate for: write one such as hooks.example.com, in lower case and ASCII, without a wildcard", domain)
		} else if slices.Contains(s.Domains[:i], domain) {
			p.At("domains").Index(i).Errorf("%q stands here a second time", domain)
		}
	}
	if s.Email != "" {
		if a, err := mail.ParseAddress(s.Email); err != nil || a.Address != s.Email {
			p.At("email").Errorf("%q is no plain email address", s.Email)
		}
	}
	if s.Directory != "" {
		if _, err := httpsurl.Parse(s.Directory); err != nil {
			p.At("directory").Errorf("%q is no https URL", s.Directory)
		}
	}
	if !s.AcceptTOS {
		p.At("accept_tos").Errorf("must be true: read the CA's terms of service, which the directory names, and agree to them here")
	}
}

// folder names the folder of a directory: what one CA issued, say for testing,
// must not be taken for what another did.
func folder(directory string) string {
	return strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '-' {
			return c
		}
		return '_'
	}, strings.TrimPrefix(directory, "https://"))
}

// AddTo returns a copy of cfg that shows the obtained certificates to clients
// that ask for their names, and to others what cfg shows. It answers the CA's
// challenges (TLS-ALPN, RFC 8737) on the same port.
func (a *ACME) AddTo(cfg *tls.Config) *tls.Config {
	if a == nil || cfg == nil {
		return cfg
	}
	cfg = cfg.Clone()
	others := cfg.GetCertificate
	cfg.NextProtos = append(slices.Clone(cfg.NextProtos), acme.ALPNProto)
	cfg.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if r := a.renewals[strings.ToLower(hello.ServerName)]; r != nil {
			return r.certificate(hello)
		}
		if others != nil {
			return others(hello)
		}
		return nil, nil // one of the pairs; without any, crypto/tls refuses the name
	}
	return cfg
}

// Expiries tells when what was obtained ends. It is renewed when a third of its
// time is left, which may be days; so a warning is due at a quarter.
func (a *ACME) Expiries() (all []Expiry) {
	if a == nil {
		return nil
	}
	for _, domain := range a.Domains {
		if c := a.renewals[domain].current.Load(); c != nil {
			all = append(all, Expiry{
				What: "server certificate", File: "acme", Subject: domain, NotAfter: c.Leaf.NotAfter,
				Ahead: quarter(c.Leaf.NotBefore, c.Leaf.NotAfter),
			})
		}
	}
	return all
}

// Renewals obtain certificates and renew them, one for each order. They outlive
// configurations: what two of them have in common goes on undisturbed.
type Renewals struct {
	log *slog.Logger

	mu  sync.Mutex
	all map[order]*renewal

	account sync.Mutex // of making an account's key, which is a file
}

// NewRenewals returns none yet.
func NewRenewals(log *slog.Logger) *Renewals {
	return &Renewals{log: log, all: map[order]*renewal{}}
}

// of returns the renewal of an order, which is made at its first use.
func (w *Renewals) of(o order, now time.Time) *renewal {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all[o] == nil {
		w.all[o] = newRenewal(o, &w.account, now, w.log)
	}
	return w.all[o]
}

// Use starts what a asks for, unless it goes on already, and ends all else. To
// answer the CA, the server must be serving a by now, or soon.
func (w *Renewals) Use(a *ACME) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for o, r := range w.all {
		if a == nil || a.renewals[o.domain] != r {
			r.stop()
			delete(w.all, o)
		}
	}
	if a == nil {
		return
	}
	var after time.Duration
	for _, domain := range a.Domains {
		if r := a.renewals[domain]; !r.begun {
			r.begun = true
			go r.run(after)
			after += spacing
		}
	}
}
