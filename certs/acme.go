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

// ACMESpec is the part of the tls section about certificates that a CA issues by ACME (RFC 8555).
type ACMESpec struct {
	Domains   []string `yaml:"domains"`    // exact names, in ASCII
	Email     string   `yaml:"email"`      // optional; the CA writes to it
	Directory string   `yaml:"directory"`  // https URL; default: Let's Encrypt
	CA        string   `yaml:"ca"`         // PEM: CAs of the directory's own certificate; default: the system's CAs
	AcceptTOS bool     `yaml:"accept_tos"` // agreement to the CA's terms of service
}

// ACME is the certificates that a configuration obtains. It is never changed. The certificates are held by its
// renewals, which another configuration may share.
type ACME struct {
	Directory string
	Domains   []string // in the order of the file
	renewals  map[string]*renewal
}

// LoadACME checks spec. It returns nil if spec is nil or has an error. state is the state folder. Its "acme" folder
// holds accounts and certificates. Stored certificates are loaded and can be served at once; no request is sent before
// [Renewals.Use].
func LoadACME(spec *ACMESpec, dir, state string, renewals *Renewals, now time.Time, p *diag.List) *ACME {
	if spec == nil {
		return nil
	}
	a := &ACME{Directory: spec.Directory, Domains: spec.Domains, renewals: map[string]*renewal{}}
	if a.Directory == "" {
		a.Directory = acme.LetsEncryptURL
	}
	before := errorCount(p)
	spec.checkSpec(p)
	roots := ""
	if spec.CA != "" {
		roots = string(Roots(spec.CA, dir, now, p.At("ca")))
	}
	if errorCount(p) > before {
		return nil
	}
	for _, domain := range a.Domains {
		a.renewals[domain] = renewals.forOrder(renewalOrder{
			domain: domain, email: spec.Email, directory: a.Directory, roots: roots,
			dir: filepath.Join(state, "acme", directoryFolder(a.Directory)),
		}, now)
	}
	return a
}

var domainForm = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`)

func (s *ACMESpec) checkSpec(p *diag.List) {
	if len(s.Domains) == 0 {
		p.At("domains").Errorf("is missing: list the names to obtain certificates for")
	}
	for i, domain := range s.Domains {
		if !domainForm.MatchString(domain) || len(domain) > 253 {
			p.At("domains").Index(i).Errorf("%q is not a name for a certificate: write a name such as "+
				"hooks.example.com, "+
				"in lower case and ASCII, without a wildcard", domain)
		} else if slices.Contains(s.Domains[:i], domain) {
			p.At("domains").Index(i).Errorf("%q is listed twice", domain)
		}
	}
	if s.Email != "" {
		if a, err := mail.ParseAddress(s.Email); err != nil || a.Address != s.Email {
			p.At("email").Errorf("%q is not a plain email address", s.Email)
		}
	}
	if s.Directory != "" {
		if _, err := httpsurl.Parse(s.Directory); err != nil {
			p.At("directory").Errorf("%q is not an https URL", s.Directory)
		}
	}
	if !s.AcceptTOS {
		p.At("accept_tos").Errorf("must be true: read the CA's terms of service, which the directory names, " +
			"and agree to them here")
	}
}

// directoryFolder returns the folder of a directory's certificates: a certificate of one CA, for example for testing,
// must not be used as one of another CA.
func directoryFolder(directory string) string {
	return strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '-' {
			return c
		}
		return '_'
	}, strings.TrimPrefix(directory, "https://"))
}

// AddTo returns a copy of cfg that shows the obtained certificates to clients that ask for their names, and to others
// what cfg shows. It answers the CA's challenges (TLS-ALPN, RFC 8737) on the same port.
func (a *ACME) AddTo(cfg *tls.Config) *tls.Config {
	if a == nil || cfg == nil {
		return cfg
	}
	cfg = cfg.Clone()
	others := cfg.GetCertificate
	cfg.NextProtos = append(slices.Clone(cfg.NextProtos), acme.ALPNProto)
	cfg.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if r := a.renewals[strings.ToLower(hello.ServerName)]; r != nil {
			return r.getCertificate(hello)
		}
		if others != nil {
			return others(hello)
		}
		return nil, nil // crypto/tls uses the pairs; without any, it refuses the name
	}
	return cfg
}

// Expiries returns when the obtained certificates expire. Renewal is due when a third of the lifetime is left, which
// may be days, so a warning is due at a quarter.
func (a *ACME) Expiries() (all []Expiry) {
	if a == nil {
		return nil
	}
	for _, domain := range a.Domains {
		if c := a.renewals[domain].current.Load(); c != nil {
			all = append(all, Expiry{
				What: "server certificate", File: "acme", Subject: domain, NotAfter: c.Leaf.NotAfter,
				Ahead: quarterLifetime(c.Leaf.NotBefore, c.Leaf.NotAfter),
			})
		}
	}
	return all
}

// Renewals obtain and renew certificates, one for each order. They outlive configurations: an order that two
// configurations share continues without interruption.
type Renewals struct {
	log *slog.Logger

	mu  sync.Mutex // also held while the file of an account key is created
	all map[renewalOrder]*renewal
}

// NewRenewals returns an empty set of renewals.
func NewRenewals(log *slog.Logger) *Renewals {
	return &Renewals{log: log, all: map[renewalOrder]*renewal{}}
}

// forOrder returns the renewal of an order, and creates it at first use.
func (w *Renewals) forOrder(o renewalOrder, now time.Time) *renewal {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all[o] == nil {
		w.all[o] = newRenewal(o, &w.mu, now, w.log)
	}
	return w.all[o]
}

// Use starts the renewals of a, and stops all others. The server must serve a's configuration by now or soon, to answer
// the CA.
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
			go r.keepRenewed(after)
			after += spacing
		}
	}
}
