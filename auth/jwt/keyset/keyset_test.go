package keyset_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"sallyport/auth/jwt/keyset"
	"sallyport/certs"
	"sallyport/internal/testenv"
)

const (
	issuer    = "https://localhost"
	discovery = "/.well-known/openid-configuration"
	keysPath  = "/keys"
)

// provider is an issuer with real TLS and a listener in memory, so that its tests can run with a simulated clock.
type provider struct {
	t   *testing.T
	ca  string
	log *testenv.Log

	mu       sync.Mutex
	hits     map[string]int // by path
	document string         // of discovery
	set      string
	answer   http.HandlerFunc // instead of the set, if there is one
	dead     bool

	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

// newProvider must be called within the bubble.
func newProvider(t *testing.T) *provider {
	t.Helper()
	dir := t.TempDir()
	if _, err := certs.Dev(dir, time.Now(), false); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "server.pem"), filepath.Join(dir, "server.key"))
	if err != nil {
		t.Fatal(err)
	}
	p := &provider{
		t: t, ca: string(ca), log: &testenv.Log{}, hits: map[string]int{}, conns: make(chan net.Conn), done: make(chan struct{}),
		document: fmt.Sprintf(`{"issuer":%q,"jwks_uri":%q}`, issuer, issuer+keysPath),
	}
	srv := &http.Server{Handler: p, ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	go func() {
		_ = srv.Serve(tls.NewListener(p, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}))
	}()
	t.Cleanup(func() { _ = srv.Close() })
	return p
}

func (p *provider) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *provider) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *provider) Addr() net.Addr { return &net.TCPAddr{} }

func (p *provider) dialProvider(ctx context.Context, _, _ string) (net.Conn, error) {
	p.mu.Lock()
	dead := p.dead
	p.mu.Unlock()
	if dead {
		return nil, errors.New("no server is there")
	}
	near, far := net.Pipe()
	select {
	case p.conns <- far:
		return near, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.hits[r.URL.Path]++
	document, set, answer := p.document, p.set, p.answer
	p.mu.Unlock()
	switch {
	case r.URL.Path == discovery:
		_, _ = io.WriteString(w, document)
	case answer != nil && r.URL.Path != "/elsewhere":
		answer(w, r)
	default:
		_, _ = io.WriteString(w, set)
	}
}

func (p *provider) changeAnswer(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

// publishKeys makes the provider answer with these keys from now on.
func (p *provider) publishKeys(keys ...*signer) {
	p.t.Helper()
	var list []map[string]any
	for _, k := range keys {
		list = append(list, k.jwk())
	}
	p.publishRaw(list...)
}

func (p *provider) publishRaw(keys ...map[string]any) {
	p.t.Helper()
	text, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		p.t.Fatal(err)
	}
	p.changeAnswer(func() { p.set, p.answer = string(text), nil })
}

func (p *provider) requestCounts() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.hits)
}

func (p *provider) countFetches() int { return p.requestCounts()[keysPath] }

// keepSet returns a set of the provider that is fetched until the end of the test.
func (p *provider) keepSet(source keyset.Source) *keyset.Set {
	p.t.Helper()
	s := p.makeSet(source)
	keyset.NewKeeper(slog.New(slog.NewJSONHandler(p.log, nil))).Keep(p.t.Context(), map[keyset.Source]*keyset.Set{source: s})
	synctest.Wait()
	return s
}

func (p *provider) makeSet(source keyset.Source) *keyset.Set {
	p.t.Helper()
	s, err := keyset.New(source)
	if err != nil {
		p.t.Fatal(err)
	}
	s.SetDialer(p.dialProvider)
	return s
}

func (p *provider) discovered() keyset.Source { return keyset.Source{Issuer: issuer, CA: p.ca} }

// signer is a key of the issuer, or of an attacker.
type signer struct {
	kid string
	key *ecdsa.PrivateKey
}

func newSigner(t *testing.T, kid string) *signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{kid, key}
}

func encodeBase64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func (s *signer) jwk() map[string]any {
	point, _ := s.key.PublicKey.Bytes() // 4, x, y
	return map[string]any{"kty": "EC", "crv": "P-256", "kid": s.kid, "x": encodeBase64(point[1:33]), "y": encodeBase64(point[33:])}
}

// verifyToken checks a token that the signer makes, as auth does.
func verifyToken(t *testing.T, set *keyset.Set, s *signer) error {
	t.Helper()
	token := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{"iss": issuer})
	token.Header["kid"] = s.kid
	raw, err := token.SignedString(s.key)
	if err != nil {
		t.Fatal(err)
	}
	_, err = jwt.NewParser(jwt.WithValidMethods([]string{"ES256"})).Parse(raw, set.Keyfunc(time.Now()))
	return err
}

// verifyAfterWait verifies a token as auth does for a delivery: again after a fetch, if a fetch may help.
func verifyAfterWait(t *testing.T, set *keyset.Set, s *signer) error {
	t.Helper()
	return verifyFrom(t, set, s, netip.Addr{})
}

func verifyFrom(t *testing.T, set *keyset.Set, s *signer, site netip.Addr) error {
	t.Helper()
	err := verifyToken(t, set, s)
	if errors.Is(err, keyset.ErrNoKey) && set.Await(t.Context(), site) {
		err = verifyToken(t, set, s)
	}
	return err
}

func wantAccepted(t *testing.T, set *keyset.Set, s *signer) {
	t.Helper()
	if err := verifyToken(t, set, s); err != nil {
		t.Errorf("%s is refused: %v", s.kid, err)
	}
}

func wantRefused(t *testing.T, set *keyset.Set, s *signer, why string) {
	t.Helper()
	if err := verifyToken(t, set, s); err == nil || !strings.Contains(err.Error(), why) {
		t.Errorf("%s: %v, want %q", s.kid, err, why)
	}
}

func TestKeeper_FetchesAtStart(t *testing.T) {
	for _, how := range []string{"discovery", "address"} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProvider(t)
				one := newSigner(t, "one")
				p.publishKeys(one)
				source := p.discovered()
				if how == "address" {
					source = keyset.Source{Address: issuer + keysPath, CA: p.ca}
				}
				set := p.keepSet(source)
				wantAccepted(t, set, one)
				wantRefused(t, set, &signer{"one", newSigner(t, "").key}, "signature is invalid")
				if p.countFetches() != 1 || strings.Count(p.log.String(), "keys fetched") != 1 {
					t.Errorf("%d fetches, log %s", p.countFetches(), p.log)
				}
			})
		})
	}
}

// TestAwait_ForgedTokens: a rotated key must work while an attacker sends forged tokens, and those must not cause more
// fetches.
func TestAwait_ForgedTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		old, fresh := newSigner(t, "old"), newSigner(t, "fresh")
		p.publishKeys(old)
		set := p.keepSet(p.discovered())
		before := p.countFetches()
		var all sync.WaitGroup
		for i := range 60 {
			all.Go(func() {
				if err := verifyAfterWait(t, set, newSigner(t, fmt.Sprint("forged ", i))); err == nil {
					t.Error("a forged token is accepted")
				}
			})
			synctest.Wait()
			if i == 0 {
				p.publishKeys(old, fresh) // right after the fetch that the first one led to
			}
			if i%10 == 1 {
				all.Go(func() {
					start := time.Now()
					if err := verifyFrom(t, set, fresh, netip.MustParseAddr("192.0.2.0")); err != nil {
						t.Errorf("a token by the new key waited %s, and %v", time.Since(start), err)
					}
				})
			}
			time.Sleep(time.Second) //nolint:forbidigo // of the bubble's clock
		}
		all.Wait()
		if n := p.countFetches() - before; n > 4 { // the last one after the minute
			t.Errorf("%d fetches for 60 forged tokens", n)
		}
	})
}

// TestAwait_PlacesPerSite shows that one site cannot use all places of waiting deliveries.
func TestAwait_PlacesPerSite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		p.publishKeys(newSigner(t, "one"))
		set := p.keepSet(p.discovered())
		set.Await(t.Context(), netip.Addr{})
		p.changeAnswer(func() { p.answer = func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() } })
		start := time.Now()
		var turned atomic.Int32
		wait := func(site netip.Addr) {
			if set.Await(t.Context(), site) {
				t.Error("a fetch that does not end has ended")
			}
			if time.Since(start) == 0 {
				turned.Add(1)
			}
		}
		var all sync.WaitGroup
		for range keyset.MaxWaitingPerSite + 5 {
			all.Go(func() { wait(netip.MustParseAddr("192.0.2.0")) })
		}
		synctest.Wait()
		all.Go(func() { wait(netip.MustParseAddr("198.51.100.0")) })
		all.Wait()
		if turned.Load() != 5 {
			t.Errorf("%d were turned away at once, want 5 of one site", turned.Load())
		}
	})
}

func TestAwait_SharedFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		old, fresh := newSigner(t, "old"), newSigner(t, "fresh")
		p.publishKeys(old)
		set := p.keepSet(p.discovered())
		p.publishKeys(old, fresh)
		gate := make(chan struct{})
		p.changeAnswer(func() {
			p.answer = func(w http.ResponseWriter, _ *http.Request) {
				<-gate
				p.mu.Lock()
				defer p.mu.Unlock()
				_, _ = io.WriteString(w, p.set)
			}
		})
		forged := newSigner(t, "forged")
		var wg sync.WaitGroup
		for range 30 {
			wg.Go(func() { _ = verifyFrom(t, set, forged, netip.MustParseAddr("192.0.2.0")) })
			wg.Go(func() {
				if err := verifyAfterWait(t, set, fresh); err != nil {
					t.Errorf("the first tokens of a new key: %v", err)
				}
			})
		}
		synctest.Wait() // all of them wait
		close(gate)
		wg.Wait()
		if n := p.countFetches(); n != 2 {
			t.Errorf("%d fetches, want one at the start and one for all of them", n)
		}
	})
}

func TestKeeper_WithdrawnKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		old, fresh := newSigner(t, "old"), newSigner(t, "fresh")
		p.publishKeys(old)
		set := p.keepSet(p.discovered())
		p.publishKeys(fresh)
		time.Sleep(keyset.FetchInterval + time.Second) //nolint:forbidigo // of the bubble's clock
		wantRefused(t, set, old, "no key with the kid of the token")
		wantAccepted(t, set, fresh)
	})
}

func TestKeeper_DeadIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		one := newSigner(t, "one")
		p.publishKeys(one)
		set := p.keepSet(p.discovered())
		p.changeAnswer(func() { p.dead = true })
		time.Sleep(keyset.KeyLifetime) //nolint:forbidigo // of the bubble's clock
		wantAccepted(t, set, one)
		if s := set.Status(); s.Err == nil || s.Failed < 100 || !s.Next.After(time.Now()) || !slices.Equal(s.Keys, []string{"one"}) {
			t.Errorf("status %+v", s)
		}
		time.Sleep(time.Second) //nolint:forbidigo // of the bubble's clock
		wantRefused(t, set, one, "too old")
		p.changeAnswer(func() { p.dead = false })
		if err := verifyAfterWait(t, set, one); err != nil {
			t.Errorf("the issuer is back: %v", err)
		}
	})
}

func TestKeeper_FirstFetchFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		one := newSigner(t, "one")
		p.publishKeys(one)
		p.dead = true
		set := p.keepSet(p.discovered())
		wantRefused(t, set, one, "could not be fetched yet")
		wantRefused(t, set, one, "no server is there")
		if n := strings.Count(p.log.String(), `"level":"WARN","msg":"keys not fetched"`); n != 1 {
			t.Errorf("logged %d times", n)
		}
		time.Sleep(7*keyset.FirstRetry + time.Second) //nolint:forbidigo // of the bubble's clock
		if s := set.Status(); s.Failed != 4 {         // after 0, 1, 3 and 7
			t.Errorf("tried %d times: %s", s.Failed, p.log)
		}
		p.changeAnswer(func() { p.dead = false })
		time.Sleep(8 * keyset.FirstRetry) //nolint:forbidigo // of the bubble's clock
		wantAccepted(t, set, one)
	})
}

// TestFetch_InvalidAnswers: after an invalid answer, the present keys stay, and the cost is bounded.
func TestFetch_InvalidAnswers(t *testing.T) {
	endless := func(w http.ResponseWriter, _ *http.Request) {
		for {
			if _, err := io.WriteString(w, strings.Repeat(" ", 1<<16)); err != nil {
				return
			}
		}
	}
	var mint *provider // of the current case
	text := func(s string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, s) }
	}
	many := `{"keys":[` + strings.TrimSuffix(strings.Repeat(`{"kty":"EC"},`, 65), ",") + `]}`
	for name, c := range map[string]struct {
		answer   http.HandlerFunc
		document string
		want     string
	}{
		"a redirect": {answer: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		}, want: "redirects are not followed"},
		"a redirect that keeps the method": {answer: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, issuer+"/elsewhere", http.StatusPermanentRedirect)
		}, want: "redirects are not followed"},
		"an error":  {answer: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }, want: "answers 500"},
		"no answer": {answer: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, want: "deadline exceeded"},
		"a drip": {answer: func(w http.ResponseWriter, _ *http.Request) {
			_, err := io.WriteString(w, " ")
			for err == nil { // and not until the request is cancelled: then the body would end in time
				time.Sleep(time.Second) //nolint:forbidigo // of the bubble's clock
				_, _ = io.WriteString(w, " ")
				err = http.NewResponseController(w).Flush()
			}
		}, want: "deadline exceeded"},
		"too much":         {answer: text(strings.Repeat(" ", keyset.MaxBody+1)), want: "more than"},
		"no end":           {answer: endless, want: "more than"},
		"a header too big": {answer: func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("x", 1<<17)) }, want: "exceeded"},
		"a bomb":           {answer: func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Encoding", "gzip") }, want: "not JSON"},
		"no JSON":          {answer: text("<html>"), want: "not JSON"},
		"two values":       {answer: func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, mint.set+"{}") }, want: "follows"},
		"duplicate names":  {answer: func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"keys":[],`+mint.set[1:]) }, want: "twice"},
		"no keys":          {answer: text(`{"keys":[]}`), want: "not a key set"},
		"too many keys":    {answer: text(many), want: "not a key set"},
		"only bad keys":    {answer: text(`{"keys":[{"kty":"oct","k":"AAAA","kid":"one"}]}`), want: "no key that can verify"},

		"another issuer":              {document: `{"issuer":"https://localhost/","jwks_uri":"https://localhost/keys"}`, want: "of another issuer"},
		"no issuer":                   {document: `{"jwks_uri":"https://localhost/keys"}`, want: "of another issuer"},
		"no address":                  {document: `{"issuer":"https://localhost"}`, want: "no jwks_uri"},
		"an address in clear":         {document: `{"issuer":"https://localhost","jwks_uri":"http://localhost/keys"}`, want: "is not an https address"},
		"an address of a file":        {document: `{"issuer":"https://localhost","jwks_uri":"file:///etc/passwd"}`, want: "is not an https address"},
		"a relative address":          {document: `{"issuer":"https://localhost","jwks_uri":"/keys"}`, want: "is not an https address"},
		"an address and user":         {document: `{"issuer":"https://localhost","jwks_uri":"https://a:b@localhost/keys"}`, want: "with a user"},
		"a document with a key twice": {document: `{"issuer":"https://localhost","issuer":"https://localhost","jwks_uri":"https://localhost/keys"}`, want: "twice"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProvider(t)
				mint = p
				one := newSigner(t, "one")
				p.publishKeys(one)
				set := p.keepSet(p.discovered())
				wantAccepted(t, set, one)
				p.changeAnswer(func() {
					if p.answer = c.answer; c.document != "" {
						p.document = c.document
					}
				})
				time.Sleep(keyset.FetchInterval + 15*time.Second) //nolint:forbidigo // of the bubble's clock
				status := set.Status()
				if status.Err == nil || !strings.Contains(status.Err.Error(), c.want) {
					t.Errorf("the error is %v, want %q", status.Err, c.want)
				}
				wantAccepted(t, set, one)
				if p.requestCounts()["/elsewhere"] > 0 {
					t.Error("the redirect was followed")
				}
				p.changeAnswer(func() {
					p.answer, p.document = nil, fmt.Sprintf(`{"issuer":%q,"jwks_uri":%q}`, issuer, issuer+keysPath)
				})
				time.Sleep(keyset.FetchInterval + 15*time.Second) //nolint:forbidigo // of the bubble's clock
				if err := set.Status().Err; err != nil {
					t.Errorf("it answers well again: %v", err)
				}
			})
		})
	}
}

// TestFetch_OwnCA uses real connections: a connection in memory has no buffer for the alert of a client that does not
// trust the server.
func TestFetch_OwnCA(t *testing.T) {
	t.Parallel()
	p, other := newProvider(t), newProvider(t)
	p.publishKeys(newSigner(t, "one"))
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.conns <- c
		}
	}()
	t.Cleanup(func() { _ = l.Close() })
	_, port, _ := net.SplitHostPort(l.Addr().String())
	for _, c := range []struct{ host, ca, want string }{
		{"https://localhost:", "", "certificate"},
		{"https://localhost:", other.ca, "certificate"},
		{"http://localhost:", p.ca, "is not an https address"},
	} {
		status := p.status(keyset.Source{Address: c.host + port + keysPath, CA: c.ca})
		if err := status.Err; err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: the error is %v, want %q", c.host, err, c.want)
		}
	}
	if len(p.requestCounts()) > 0 {
		t.Errorf("asked for %v", p.requestCounts())
	}
	if s := p.status(keyset.Source{Address: "https://localhost:" + port + keysPath, CA: p.ca}); s.Err != nil || !slices.Equal(s.Keys, []string{"one"}) {
		t.Errorf("status %+v", s)
	}
	if _, err := keyset.New(keyset.Source{Issuer: issuer, CA: "x"}); err == nil {
		t.Error("a file without a CA was accepted")
	}
}

// status returns the status of a set that is fetched over real connections, after its first fetch.
func (p *provider) status(source keyset.Source) keyset.Status {
	p.t.Helper()
	set, err := keyset.New(source)
	if err != nil {
		p.t.Fatal(err)
	}
	keyset.NewKeeper(slog.New(slog.NewJSONHandler(p.log, nil))).Keep(p.t.Context(), map[keyset.Source]*keyset.Set{source: set})
	set.Await(p.t.Context(), netip.Addr{})
	return set.Status()
}

// TestKeeper_LettingGoLeavesNoConnection stops fetching from an issuer that accepts connections and never answers.
func TestKeeper_LettingGoLeavesNoConnection(t *testing.T) {
	t.Parallel()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	source := keyset.Source{Issuer: "https://" + l.Addr().String()}
	set, err := keyset.New(source)
	if err != nil {
		t.Fatal(err)
	}
	k := keyset.NewKeeper(slog.New(slog.DiscardHandler))
	k.Keep(t.Context(), map[keyset.Source]*keyset.Set{source: set})
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	k.Keep(t.Context(), nil)
	if set.Await(t.Context(), netip.Addr{}) && set.Status().Fetches > 1 {
		t.Error("it is asked again though it was let go")
	}
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, conn); err != nil {
		t.Error("the connection stays open:", err)
	}
}

// TestFetch_PartlyInvalidSet: a key that cannot verify a signature is left out, and the others are used.
func TestFetch_PartlyInvalidSet(t *testing.T) {
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	jwkOf := func(k *rsa.PublicKey) map[string]any {
		return map[string]any{"kty": "RSA", "kid": "bad", "n": encodeBase64(k.N.Bytes()), "e": encodeBase64(big.NewInt(int64(k.E)).Bytes())}
	}
	bad := newSigner(t, "bad")
	with := func(name string, value any) map[string]any {
		m := bad.jwk()
		m[name] = value
		return m
	}
	for name, c := range map[string]struct {
		key    map[string]any
		silent bool
	}{
		"for encryption":         {with("use", "enc"), true},
		"for other operations":   {with("key_ops", []string{"sign", "deriveKey"}), true},
		"a secret":               {map[string]any{"kty": "oct", "kid": "bad", "k": encodeBase64([]byte(strings.Repeat("k", 32)))}, false},
		"a secret of our kid":    {map[string]any{"kty": "oct", "kid": "good", "k": encodeBase64([]byte(strings.Repeat("k", 32)))}, false},
		"private":                {with("d", "AAAA"), false},
		"short":                  {jwkOf(&weak.PublicKey), false},
		"off the curve":          {with("x", encodeBase64(make([]byte, 32))), false},
		"of no known curve":      {with("crv", "secp256k1"), false},
		"for another algorithm":  {with("alg", "HS256"), false},
		"alg none":               {with("alg", "none"), false},
		"nameless":               {map[string]any{"kty": "EC", "crv": "P-256", "x": bad.jwk()["x"], "y": bad.jwk()["y"]}, false},
		"a kid that is a number": {with("kid", 7), false},
		"an unknown kty":         {map[string]any{"kty": "AKP", "kid": "bad", "alg": "ML-DSA-44", "pub": "AAAA"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProvider(t)
				good := newSigner(t, "good")
				p.publishRaw(good.jwk(), c.key)
				set := p.keepSet(p.discovered())
				wantAccepted(t, set, good)
				if err := verifyToken(t, set, bad); err == nil {
					t.Error("the bad key verifies")
				}
				hmac := jwt.New(jwt.SigningMethodHS256)
				hmac.Header["kid"] = "bad"
				raw, err := hmac.SignedString([]byte(strings.Repeat("k", 32)))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := jwt.Parse(raw, set.Keyfunc(time.Now())); err == nil {
					t.Error("a published secret verifies")
				}
				if s := set.Status(); !slices.Equal(s.Keys, []string{"good"}) || c.silent != (len(s.LeftOut) == 0) || c.silent == strings.Contains(p.log.String(), "WARN") {
					t.Errorf("status %+v, log %s", s, p.log)
				}
			})
		})
	}
}

func TestParse_DuplicateKid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		good, one, two := newSigner(t, "good"), newSigner(t, "twice"), newSigner(t, "twice")
		p.publishKeys(good, one, two)
		set := p.keepSet(p.discovered())
		wantAccepted(t, set, good)
		wantRefused(t, set, one, "no key with the kid of the token")
		wantRefused(t, set, two, "no key with the kid of the token")
	})
}

// TestFetch_NoOtherAddress: the library jwkset would fetch the address in x5u, which may be any.
func TestFetch_NoOtherAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		one := newSigner(t, "one")
		key := one.jwk()
		key["x5u"], key["jku"], key["x5c"] = issuer+"/x5u", issuer+"/jku", []string{"AAAA"}
		p.publishRaw(key)
		set := p.keepSet(p.discovered())
		wantAccepted(t, set, one)
		if len(p.requestCounts()) != 2 {
			t.Errorf("asked for %v", p.requestCounts())
		}
	})
}

func TestKeyfunc_KidAndAlgorithm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		one := newSigner(t, "one")
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		p.publishRaw(one.jwk(), map[string]any{"kty": "RSA", "kid": "rsa", "n": encodeBase64(key.N.Bytes()), "e": "AQAB"})
		set := p.keepSet(p.discovered())
		parse := func(m jwt.SigningMethod, with any, kid any) error {
			token := jwt.New(m)
			if token.Header["kid"] = kid; kid == nil {
				delete(token.Header, "kid")
			}
			raw, err := token.SignedString(with)
			if err != nil {
				t.Fatal(err)
			}
			_, err = jwt.Parse(raw, set.Keyfunc(time.Now()))
			return err
		}
		if err := parse(jwt.SigningMethodRS256, key, "rsa"); err != nil {
			t.Error(err)
		}
		for name, err := range map[string]error{
			"no kid":                parse(jwt.SigningMethodES256, one.key, nil),
			"a number":              parse(jwt.SigningMethodES256, one.key, 1),
			"another key's":         parse(jwt.SigningMethodES256, one.key, "rsa"),
			"another algorithm":     parse(jwt.SigningMethodRS512, key, "rsa"),
			"another padding":       parse(jwt.SigningMethodPS256, key, "rsa"),
			"the key as a password": parse(jwt.SigningMethodHS256, key.N.Bytes(), "rsa"),
			"none":                  parse(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, "one"),
		} {
			if err == nil {
				t.Errorf("%s: accepted", name)
			}
		}
	})
}

func TestAwait_Bounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		one := newSigner(t, "one")
		p.publishKeys(one)
		set := p.keepSet(p.discovered())
		set.Await(t.Context(), netip.Addr{}) // the next fetch has to wait for its time, and then for its end
		p.changeAnswer(func() { p.answer = func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() } })
		var waited, turned atomic.Int32
		var wg sync.WaitGroup
		start := time.Now()
		for i := range keyset.MaxWaiting + 10 {
			site := netip.AddrFrom4([4]byte{10, 0, byte(i), 0})
			wg.Go(func() {
				if set.Await(t.Context(), site) {
					t.Error("a fetch that does not end has ended")
				}
				if took := time.Since(start); took == 0 {
					turned.Add(1)
				} else if took == keyset.MaxWait {
					waited.Add(1)
				}
			})
		}
		wg.Wait()
		if turned.Load() != 10 || waited.Load() != keyset.MaxWaiting {
			t.Errorf("%d waited, %d were turned away at once", waited.Load(), turned.Load())
		}
		// After that, deliveries may wait again.
		p.publishKeys(one)
		time.Sleep(keyset.FetchInterval) //nolint:forbidigo // of the bubble's clock
		if !set.Await(t.Context(), netip.Addr{}) {
			t.Error("no caller is waiting, but another one may not wait")
		}
		// A delivery does not wait after its sender has disconnected.
		p.changeAnswer(func() { p.answer = func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() } })
		time.Sleep(keyset.DemandInterval) //nolint:forbidigo // of the bubble's clock
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if start := time.Now(); set.Await(ctx, netip.Addr{}) || time.Since(start) > 0 {
			t.Error("it waited, but no caller was waiting")
		}
	})
}

func TestKeeper_KeepsSharedSets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, q := newProvider(t), newProvider(t)
		one, two := newSigner(t, "one"), newSigner(t, "two")
		p.publishKeys(one)
		q.publishKeys(two)
		a, b := p.discovered(), q.discovered()
		setA, setB := p.makeSet(a), q.makeSet(b)
		if start := time.Now(); setA.Await(t.Context(), netip.Addr{}) || time.Since(start) > 0 {
			t.Error("it waited for a set that is not kept")
		}
		k := keyset.NewKeeper(slog.New(slog.DiscardHandler))
		k.Keep(t.Context(), map[keyset.Source]*keyset.Set{a: setA, b: setB})
		synctest.Wait()
		k.Keep(t.Context(), map[keyset.Source]*keyset.Set{a: setA})
		synctest.Wait()
		wantAccepted(t, setA, one)
		wantAccepted(t, setB, two) // for the deliveries that are still in progress
		if p.countFetches() != 1 || setB.Await(t.Context(), netip.Addr{}) {
			t.Errorf("%d fetches", p.countFetches())
		}
		time.Sleep(3*keyset.FetchInterval + time.Second) //nolint:forbidigo // of the bubble's clock
		if p.countFetches() != 4 || q.countFetches() != 1 {
			t.Errorf("%d and %d fetches", p.countFetches(), q.countFetches())
		}
		// The same source in a configuration that was loaded without an earlier one is another set.
		setB = q.makeSet(b)
		k.Keep(t.Context(), map[keyset.Source]*keyset.Set{b: setB})
		synctest.Wait()
		wantAccepted(t, setB, two)
	})
}

// heldLog is the writer of a log whose lines are not written before it is closed.
type heldLog chan struct{}

func (l heldLog) Write(p []byte) (int, error) {
	<-l
	return len(p), nil
}

// TestKeeper_KeepsAgain stops keeping a set during a fetch, and another keeper keeps it. That fetch ends after the next
// one and changes nothing: a token with a new key still leads to a fetch.
func TestKeeper_KeepsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, one, two := newProvider(t), newSigner(t, "one"), newSigner(t, "two")
		p.changeAnswer(func() {
			p.answer = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }
		})
		set, held := p.makeSet(p.discovered()), make(heldLog)
		sets := map[keyset.Source]*keyset.Set{p.discovered(): set}
		k := keyset.NewKeeper(slog.New(slog.NewJSONHandler(held, nil)))
		k.Keep(t.Context(), sets)
		synctest.Wait() // the fetch has failed, which is about to be logged
		k.Keep(t.Context(), nil)
		p.publishKeys(one)
		keyset.NewKeeper(slog.New(slog.DiscardHandler)).Keep(t.Context(), sets)
		synctest.Wait()
		wantAccepted(t, set, one)
		close(held)
		synctest.Wait()
		p.publishKeys(one, two)
		if err := verifyAfterWait(t, set, two); err != nil {
			t.Error(err)
		}
	})
}
