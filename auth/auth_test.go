package auth_test

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/auth"
	"sallyport/auth/jwt/keyset"
	"sallyport/auth/webhook"
	"sallyport/certs"
	"sallyport/internal/diag"
)

// now returns the time at which the deliveries of these tests arrive.
func now() time.Time { return time.Unix(1_800_000_000, 0) }

const (
	secretA = "a secret of at least 32 bytes: AAAA"
	secretB = "a secret of at least 32 bytes: BBBB"
	secretC = "a secret of at least 32 bytes: CCCC"
)

// bench compiles callers, with a folder for their keys.
type bench struct {
	testing.TB
	dir      string
	clientCA string // file
	specs    map[string]*auth.CallerSpec

	inForce map[keyset.Source]*keyset.Set
}

func newBench(t testing.TB) *bench {
	t.Helper()
	return &bench{TB: t, dir: t.TempDir(), specs: map[string]*auth.CallerSpec{}}
}

// writeKey writes a key file and returns its specification.
func (b *bench) writeKey(id, text string) auth.KeySpec {
	b.Helper()
	name := "key-" + strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, id)
	f, err := os.CreateTemp(b.dir, name)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := f.WriteString(text + "\n"); err != nil {
		b.Fatal(err)
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
	return auth.KeySpec{ID: id, File: filepath.Base(f.Name())}
}

func (b *bench) addHMAC(name, scheme string, secrets ...string) {
	b.Helper()
	h := &auth.HMACSpec{Scheme: scheme}
	for i, s := range secrets {
		h.Keys = append(h.Keys, b.writeKey(string(rune('a'+i)), s))
	}
	b.caller(name).HMAC = h
}

func (b *bench) addToken(name, header, secret string) {
	b.Helper()
	b.caller(name).Token = &auth.TokenSpec{Header: header, Keys: []auth.KeySpec{b.writeKey("t", secret)}}
}

func (b *bench) caller(name string) *auth.CallerSpec {
	if b.specs[name] == nil {
		b.specs[name] = &auth.CallerSpec{}
	}
	return b.specs[name]
}

func (b *bench) compile() *auth.Callers {
	b.Helper()
	c, p := b.tryCompile()
	if p.Bad() {
		b.Fatalf("compiling: %v", p.All())
	}
	return c
}

func (b *bench) tryCompile() (*auth.Callers, *diag.List) {
	p := &diag.List{}
	clients := certs.LoadClients(certs.Spec{ClientCA: b.clientCA},
		auth.NameClientCertificates(b.specs, p.At("callers")), b.dir, time.Now(), nil, p.At("tls"))
	c := auth.Compile(b.specs, auth.Sources{Dir: b.dir, Clients: clients, Now: time.Now(), KeySets: b.inForce}, p.At("callers"))
	// At has given the list behind p its place, so p sees what was added there.
	return c, p
}

// problems compiles and returns every error as "path: text".
func (b *bench) problems() string {
	b.Helper()
	_, p := b.tryCompile()
	var lines []string
	for _, x := range p.All() {
		kind := "error "
		if x.Warning {
			kind = "warning "
		}
		lines = append(lines, kind+strings.Join(x.Path, ".")+": "+x.Text)
	}
	return strings.Join(lines, "\n")
}

func (b *bench) wantProblem(parts ...string) {
	b.Helper()
	all := b.problems()
	for _, line := range strings.Split(all, "\n") {
		found := true
		for _, part := range parts {
			found = found && strings.Contains(line, part)
		}
		if found {
			return
		}
	}
	b.Errorf("no problem has all of %q; there are:\n%s", parts, all)
}

func delivery(body string, h http.Header) *auth.Delivery {
	return &auth.Delivery{Header: h, Body: []byte(body), Now: now()}
}

func wantCaller(t testing.TB, c *auth.Callers, d *auth.Delivery, caller string, hook ...string) *auth.Identity {
	t.Helper()
	id, err := c.Authenticate(d, hook)
	if err != nil {
		t.Fatalf("refused: %v, want the caller %s", err, caller)
	}
	if id.Caller != caller {
		t.Fatalf("the caller is %s, want %s", id.Caller, caller)
	}
	return id
}

func newRefusal(t testing.TB, c *auth.Callers, d *auth.Delivery, reason auth.Reason, hook ...string) *auth.Refusal {
	t.Helper()
	id, err := c.Authenticate(d, hook)
	if err == nil {
		t.Fatalf("accepted as %s, want %s", id.Caller, reason)
	}
	if id != nil {
		t.Fatal("a refusal came with an identity")
	}
	var r *auth.Refusal
	if !errors.As(err, &r) {
		t.Fatalf("the error is a %T, want a Refusal", err)
	}
	if r.Reason != reason {
		t.Fatalf("refused as %v, want %s", err, reason)
	}
	return r
}

func headers(pairs ...string) http.Header {
	h := http.Header{}
	for i := 0; i < len(pairs); i += 2 {
		h.Add(pairs[i], pairs[i+1])
	}
	return h
}

// signed returns the headers that the sender of a preset would send now.
func signed(t testing.TB, scheme, secret, body string) http.Header {
	t.Helper()
	return signedAt(t, scheme, secret, body, "msg_1", now())
}

func signedAt(t testing.TB, scheme, secret, body, id string, at time.Time) http.Header {
	t.Helper()
	s, ok := webhook.Preset(scheme)
	if !ok {
		t.Fatalf("no preset %s", scheme)
	}
	h, err := s.Sign([]byte(secret), []byte(body), id, at)
	if err != nil {
		t.Fatal(err)
	}
	h.Set("Content-Type", "application/json")
	return h
}
