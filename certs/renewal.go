package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
)

const (
	firstRetry = 10 * time.Second // then after four times as long: Let's Encrypt forgives five failures an hour
	lastRetry  = time.Hour
	lookEvery  = 10 * time.Second // whether autocert has renewed
	acmeAnswer = 1 << 20          // bytes of one that are looked at
)

// order is what makes two renewals the same.
type order struct {
	domain, email, directory string
	roots                    string // PEM; empty: the system's
	cache                    string // folder
}

// renewal obtains and renews the certificate of one domain in the background. A
// handshake is shown what is there and never asks for anything: so the CA can
// not hold it up, and no client can spend what the CA allows.
type renewal struct {
	order

	log     *slog.Logger
	turn    *sync.Mutex
	ctx     context.Context // done when it is to end
	stop    context.CancelFunc
	start   func()
	http    http.Transport
	manager atomic.Pointer[autocert.Manager]
	current atomic.Pointer[tls.Certificate] // with its Leaf
	told    atomic.Pointer[string]          // URL of the last authorization whose failure was logged
}

func newRenewal(o order, turn *sync.Mutex, now time.Time, log *slog.Logger) *renewal {
	r := &renewal{order: o, turn: turn, log: log.With("domain", o.domain)}
	r.ctx, r.stop = context.WithCancel(context.Background())
	r.start = sync.OnceFunc(func() { go r.run() })
	r.http.Proxy, r.http.IdleConnTimeout = http.ProxyFromEnvironment, time.Minute
	if o.roots != "" {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM([]byte(o.roots))
		r.http.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	r.manager.Store(r.newManager())
	// autocert keeps a key and its chain in one file.
	if data, err := autocert.DirCache(o.cache).Get(r.ctx, o.domain); err == nil {
		if pair, err := tls.X509KeyPair(data, data); err == nil && now.Before(pair.Leaf.NotAfter) {
			r.current.Store(&pair)
		}
	}
	return r
}

func (r *renewal) newManager() *autocert.Manager {
	return &autocert.Manager{
		Prompt:     autocert.AcceptTOS, // the file says so
		Cache:      autocert.DirCache(r.cache),
		HostPolicy: autocert.HostWhitelist(r.domain),
		Email:      r.email,
		Client: &acme.Client{
			DirectoryURL: r.directory,
			HTTPClient:   &http.Client{Transport: r, Timeout: 30 * time.Second},
			UserAgent:    "sallyport",
		},
	}
}

// certificate returns what a client is shown: the CA, when it validates, the
// answer to its challenge (RFC 8737 section 3), and everybody else the
// certificate.
func (r *renewal) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if slices.Equal(hello.SupportedProtos, []string{acme.ALPNProto}) {
		return r.manager.Load().GetCertificate(hello)
	}
	if c := r.current.Load(); c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("there is no certificate for %s yet", r.domain)
}

// run obtains a certificate, again and again until there is one, then looks for
// the one that takes its place.
func (r *renewal) run() {
	retry := firstRetry
	for {
		pause := lookEvery
		c, err := r.obtain()
		switch {
		case r.ctx.Err() != nil:
			return
		case err != nil:
			r.log.Error("obtaining a certificate", "error", err, "again_in", retry.String())
			pause, retry = retry, min(4*retry, lastRetry)
		default:
			retry = firstRetry
			if old := r.current.Swap(c); old == nil || !old.Leaf.Equal(c.Leaf) {
				r.log.Info("certificate obtained", "not_after", c.Leaf.NotAfter)
			}
		}
		select {
		case <-r.ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// obtain returns the certificate that autocert has, and has it asked for when
// there is none. autocert renews by itself from then on.
func (r *renewal) obtain() (*tls.Certificate, error) {
	r.turn.Lock()
	defer r.turn.Unlock()
	c, err := r.manager.Load().GetCertificate(&tls.ClientHelloInfo{
		ServerName:   r.domain,
		CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}, // an ECDSA key, which every client of TLS 1.3 knows
	})
	if err != nil {
		r.manager.Store(r.newManager()) // this one would not try again for a minute
	}
	return c, err
}

// RoundTrip sends a request to the ACME server, and logs what that has against
// it: autocert keeps to itself why a validation failed, and that a renewal did.
// Once it has ended, autocert's timers go nowhere.
func (r *renewal) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := r.ctx.Err(); err != nil {
		if req.Body != nil {
			_ = req.Body.Close() // as every RoundTripper must
		}
		return nil, err
	}
	res, err := r.http.RoundTrip(req)
	if err != nil {
		r.log.Warn("ACME server not reached", "error", err)
		return nil, err
	}
	if strings.Contains(res.Header.Get("Content-Type"), "json") {
		body, err := io.ReadAll(io.LimitReader(res.Body, acmeAnswer))
		if err != nil {
			_ = res.Body.Close()
			return nil, err
		}
		r.tell(req.URL.String(), body)
		res.Body = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(bytes.NewReader(body), res.Body), res.Body}
	}
	return res, nil
}

// tell logs what an answer complains of: it is a problem (RFC 8555 section 6.7)
// or an authorization with a challenge that was not met (section 8).
func (r *renewal) tell(from string, body []byte) {
	type complaint struct{ Type, Detail string }
	var answer struct {
		complaint

		Challenges []struct{ Error complaint }
	}
	if json.Unmarshal(body, &answer) != nil {
		return // autocert says so
	}
	if answer.Detail != "" && answer.Type != "urn:ietf:params:acme:error:badNonce" { // which is asked for again
		r.log.Warn("ACME server refuses", "type", answer.Type, "detail", answer.Detail)
	}
	for _, c := range answer.Challenges {
		if told := r.told.Load(); c.Error.Detail != "" && (told == nil || *told != from) {
			r.told.Store(&from)
			r.log.Warn("ACME server does not validate", "type", c.Error.Type, "detail", c.Error.Detail)
		}
	}
}
