package certs

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
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
	firstRetry = 10 * time.Second // then four times as long: Let's Encrypt allows five failures per hour
	lastRetry  = time.Hour
	lookEvery  = 10 * time.Second // interval of checks whether autocert has renewed
	spacing    = time.Second      // time between the first orders of several domains: CAs limit bursts

	acmeRequest = 30 * time.Second // limit for a whole request
	acmeConnect = 10 * time.Second // limit for TCP, and again for TLS
	acmeAnswer  = 1 << 20          // maximum bytes of an answer
	accountFile = "acme_account+key"
)

// renewalOrder identifies a renewal.
type renewalOrder struct {
	domain, email, directory string
	roots                    string // PEM; empty: the system's
	dir                      string // folder of the cache
}

// accountCache is the folder where autocert stores keys and certificates. The first renewal creates the account key and
// all others use it, because CAs limit the number of accounts.
type accountCache struct {
	autocert.DirCache
	mu *sync.Mutex // Renewals.mu
}

// Get reads a file of the cache.
func (c accountCache) Get(ctx context.Context, name string) ([]byte, error) {
	if name != accountFile {
		return c.DirCache.Get(ctx, name)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	data, err := c.DirCache.Get(ctx, name)
	if !errors.Is(err, autocert.ErrCacheMiss) {
		return data, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	data = pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	return data, c.Put(ctx, name, data)
}

// renewal obtains and renews the certificate of one domain in the background. A handshake gets the current certificate
// and never starts a request: so the CA cannot delay it, and no client can use up the CA's rate limits. A renewal never
// waits for the CA while it holds something that renewals share.
type renewal struct {
	renewalOrder

	log                 *slog.Logger
	cache               accountCache
	ctx                 context.Context // done when it is to end
	stop                context.CancelFunc
	begun               bool // guarded by Renewals.mu
	http                http.Transport
	manager             atomic.Pointer[autocert.Manager]
	current             atomic.Pointer[tls.Certificate] // with its Leaf
	loggedAuthorization atomic.Pointer[string]          // URL of the authorization that last failed and was logged
}

func newRenewal(o renewalOrder, mu *sync.Mutex, now time.Time, log *slog.Logger) *renewal {
	r := &renewal{renewalOrder: o, cache: accountCache{autocert.DirCache(o.dir), mu}, log: log.With("domain", o.domain)}
	r.ctx, r.stop = context.WithCancel(context.Background())
	r.http.Proxy, r.http.IdleConnTimeout = http.ProxyFromEnvironment, time.Minute
	// Without these timeouts, a connection attempt outlives its request.
	r.http.DialContext, r.http.TLSHandshakeTimeout = (&net.Dialer{Timeout: acmeConnect}).DialContext, acmeConnect
	if o.roots != "" {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM([]byte(o.roots))
		r.http.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	r.manager.Store(r.newManager())
	// autocert keeps a key and its chain in one file.
	if data, err := r.cache.Get(r.ctx, o.domain); err == nil {
		if pair, err := tls.X509KeyPair(data, data); err == nil && now.Before(pair.Leaf.NotAfter) {
			r.current.Store(&pair)
		}
	}
	return r
}

func (r *renewal) newManager() *autocert.Manager {
	return &autocert.Manager{
		Prompt:     autocert.AcceptTOS, // the configuration says so
		Cache:      r.cache,
		HostPolicy: autocert.HostWhitelist(r.domain),
		Email:      r.email,
		Client: &acme.Client{
			DirectoryURL: r.directory,
			HTTPClient:   &http.Client{Transport: r, Timeout: acmeRequest},
			UserAgent:    "sallyport",
		},
	}
}

// getCertificate returns the answer to a challenge when the CA validates (RFC 8737 section 3), and otherwise the
// certificate.
func (r *renewal) getCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if slices.Equal(hello.SupportedProtos, []string{acme.ALPNProto}) {
		return r.manager.Load().GetCertificate(hello)
	}
	if c := r.current.Load(); c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("no certificate for %s yet", r.domain)
}

// keepRenewed obtains a certificate, with retries, and then loads its successors. It begins after a pause.
func (r *renewal) keepRenewed(pause time.Duration) {
	defer r.http.CloseIdleConnections() // which also ends connection attempts
	for retry := firstRetry; ; {
		select {
		case <-r.ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = lookEvery
		c, err := r.obtainCertificate()
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
	}
}

// obtainCertificate returns autocert's certificate, and requests one if autocert does not have it. After that, autocert
// renews it.
func (r *renewal) obtainCertificate() (*tls.Certificate, error) {
	c, err := r.manager.Load().GetCertificate(&tls.ClientHelloInfo{
		ServerName: r.domain,
		// An ECDSA key, which every client of TLS 1.3 supports.
		CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
	})
	if err != nil {
		r.manager.Store(r.newManager()) // the old manager would not try again for a minute
	}
	return c, err
}

// RoundTrip sends a request to the ACME server, and logs the errors that the server reports: autocert does not return
// why a validation failed, nor that a renewal did. The end of the renewal also ends its request, and later requests of
// autocert's timers fail.
func (r *renewal) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(req.Context())
	defer cancel()
	defer context.AfterFunc(r.ctx, cancel)() //nolint:contextcheck // both end it
	if err := r.ctx.Err(); err != nil {
		if req.Body != nil {
			_ = req.Body.Close() // as every RoundTripper must
		}
		return nil, err
	}
	res, body, err := r.sendRequest(req.WithContext(ctx))
	switch {
	case err != nil && r.ctx.Err() == nil:
		r.log.Warn("ACME server not reached", "error", err)
		return nil, err
	case err != nil:
		return nil, err
	case strings.Contains(res.Header.Get("Content-Type"), "json"):
		r.logProblems(req.URL.String(), body)
	}
	res.Body = io.NopCloser(bytes.NewReader(body))
	return res, nil
}

// sendRequest sends a request and reads the whole answer.
func (r *renewal) sendRequest(req *http.Request) (*http.Response, []byte, error) {
	res, err := r.http.RoundTrip(req)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close() //nolint:errcheck // only read
	body, err := io.ReadAll(io.LimitReader(res.Body, acmeAnswer+1))
	if err == nil && len(body) > acmeAnswer {
		err = fmt.Errorf("%s answered with more than %d bytes", req.URL, acmeAnswer)
	}
	return res, body, err
}

// logProblems logs the errors in an answer: a problem (RFC 8555 section 6.7), or an authorization with a failed
// challenge (section 8).
func (r *renewal) logProblems(from string, body []byte) {
	type complaint struct{ Type, Detail string }
	var answer struct {
		complaint

		Challenges []struct{ Error complaint }
	}
	if json.Unmarshal(body, &answer) != nil {
		return // autocert reports it
	}
	if answer.Detail != "" && answer.Type != "urn:ietf:params:acme:error:badNonce" { // autocert tries that again
		r.log.Warn("ACME server reported an error", "type", answer.Type, "detail", answer.Detail)
	}
	for _, c := range answer.Challenges {
		if told := r.loggedAuthorization.Load(); c.Error.Detail != "" && (told == nil || *told != from) {
			r.loggedAuthorization.Store(&from)
			r.log.Warn("ACME validation failed", "type", c.Error.Type, "detail", c.Error.Detail)
		}
	}
}
