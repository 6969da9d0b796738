package auth_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"sallyport/auth"
	"sallyport/auth/jwt/keyset"
	"sallyport/certs"
)

// publisher is an issuer that serves its discovery document and its keys over TLS, and counts other requests.
type publisher struct {
	*httptest.Server

	set     atomic.Pointer[string]
	fetches atomic.Int32
	other   atomic.Int32
}

// publisher starts an issuer, and writes its CA to the bench's folder as ca.pem.
func (b *bench) publisher(keys ...map[string]any) *publisher {
	b.Helper()
	if _, err := certs.Dev(b.dir, time.Now(), true); err != nil {
		b.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(b.dir, "server.pem"), filepath.Join(b.dir, "server.key"))
	if err != nil {
		b.Fatal(err)
	}
	p := &publisher{}
	p.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/.well-known/openid-configuration":
			_ = json.NewEncoder(w).Encode(map[string]string{"issuer": p.URL, "jwks_uri": p.URL + "/jwks"})
		case "/jwks":
			p.fetches.Add(1)
			_, _ = io.WriteString(w, *p.set.Load())
		default:
			p.other.Add(1)
		}
	}))
	p.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}
	p.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	p.StartTLS()
	b.Cleanup(p.Close)
	p.publish(b, keys...)
	return p
}

func (p *publisher) publish(b *bench, keys ...map[string]any) {
	b.Helper()
	text, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		b.Fatal(err)
	}
	set := string(text)
	p.set.Store(&set)
}

// addIssuer adds a caller with keys from a publisher.
func (b *bench) addIssuer(name string, p *publisher, change func(*auth.JWTSpec)) {
	b.Helper()
	b.addJWT(name, func(s *auth.JWTSpec) {
		s.Issuer, s.CA = p.URL, "ca.pem"
		if change != nil {
			change(s)
		}
	})
}

// compileAndFetch compiles the callers and waits for the keys of all issuers.
func (b *bench) compileAndFetch() *auth.Callers {
	b.Helper()
	c := b.compile()
	keyset.NewKeeper(slog.New(slog.DiscardHandler)).Keep(b.Context(), c.KeySets())
	for _, s := range c.KeySets() {
		s.Await(b.Context(), netip.Addr{})
	}
	return c
}

// signNow returns a token of an issuer that is valid at the current time.
func (p *publisher) signNow(t testing.TB, method jwt.SigningMethod, key any, kid string, change ...func(jwt.MapClaims)) *auth.Delivery {
	t.Helper()
	at := time.Now().Unix()
	c := validClaims(withClaim("iss", p.URL), withClaim("iat", at), withClaim("exp", at+300))
	for _, f := range change {
		f(c)
	}
	header := map[string]any{}
	if kid != "" {
		header["kid"] = kid
	}
	d := bearerDelivery(signToken(t, method, key, c, header))
	d.Now = time.Now()
	return d
}

func TestIssuer_FetchedKey(t *testing.T) {
	r := testKeys()
	b := newBench(t)
	ours := b.publisher(jwkRSA(&r.rsa.PublicKey, "kid", "r"), jwkEC(t, &r.p256.PublicKey, "kid", "e"), jwkEd(r.ed, "kid", "d"))
	theirs := b.publisher(jwkRSA(&r.otherRSA.PublicKey, "kid", "o"))
	b.addIssuer("ours", ours, nil)
	b.addIssuer("theirs", theirs, nil)
	c := b.compileAndFetch()
	if id := wantCaller(t, c, ours.signNow(t, jwt.SigningMethodRS256, r.rsa, "r"), "ours"); id.Key != "r" || id.Replay == "" || !id.OneBody {
		t.Errorf("identity %+v", id)
	}
	wantCaller(t, c, ours.signNow(t, jwt.SigningMethodES256, r.p256, "e"), "ours")
	wantCaller(t, c, ours.signNow(t, jwt.SigningMethodEdDSA, r.ed, "d"), "ours")
	wantCaller(t, c, theirs.signNow(t, jwt.SigningMethodRS256, r.otherRSA, "o"), "theirs")

	text := publicPEM(t, r.rsa)
	der, err := x509.MarshalPKIXPublicKey(r.rsa.Public())
	if err != nil {
		t.Fatal(err)
	}
	for name, d := range map[string]*auth.Delivery{
		"another issuer's key":               ours.signNow(t, jwt.SigningMethodRS256, r.otherRSA, "r"),
		"another issuer's key under its kid": ours.signNow(t, jwt.SigningMethodRS256, r.otherRSA, "o"),
		"our key under another issuer's kid": ours.signNow(t, jwt.SigningMethodRS256, r.rsa, "o"),
		"our key in another issuer's name":   theirs.signNow(t, jwt.SigningMethodRS256, r.rsa, "r"),
		"another key's kid":                  ours.signNow(t, jwt.SigningMethodRS256, r.rsa, "e"),
		"no kid":                             ours.signNow(t, jwt.SigningMethodRS256, r.rsa, ""),
		"a kid of another case":              ours.signNow(t, jwt.SigningMethodRS256, r.rsa, "R"),
		"a kid as a path":                    ours.signNow(t, jwt.SigningMethodRS256, r.rsa, "../r"),
		"a kid as an address":                ours.signNow(t, jwt.SigningMethodRS256, r.rsa, ours.URL+"/evil"),
		"another algorithm of the key":       ours.signNow(t, jwt.SigningMethodRS512, r.rsa, "r"),
		"another padding":                    ours.signNow(t, jwt.SigningMethodPS256, r.rsa, "r"),
		"the public key as a secret":         ours.signNow(t, jwt.SigningMethodHS256, []byte(text), "r"),
		"the public key in DER as a secret":  ours.signNow(t, jwt.SigningMethodHS256, der, "r"),
		"none":                               ours.signNow(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, "r"),
		"another audience":                   ours.signNow(t, jwt.SigningMethodRS256, r.rsa, "r", withClaim("aud", "https://other.example")),
		"another claim":                      ours.signNow(t, jwt.SigningMethodRS256, r.rsa, "r", withClaim("ref", "refs/heads/evil")),
		"no claim":                           ours.signNow(t, jwt.SigningMethodRS256, r.rsa, "r", withClaim("run", nil)),
		"an unknown issuer":                  ours.signNow(t, jwt.SigningMethodRS256, r.rsa, "r", withClaim("iss", ours.URL+"/")),
	} {
		t.Run(name, func(t *testing.T) {
			if id, err := c.Authenticate(d, nil); err == nil {
				t.Errorf("accepted as %s", id.Caller)
			}
		})
	}
	for _, member := range []string{"jku", "x5u", "jwk"} {
		raw := signToken(t, jwt.SigningMethodRS256, r.rsa, validClaims(withClaim("iss", ours.URL)), map[string]any{"kid": "x", member: ours.URL + "/evil"})
		newRefusal(t, c, bearerDelivery(raw), auth.Malformed)
	}
	if n := ours.other.Load(); n > 0 {
		t.Errorf("the issuer was asked %d times for tokens that no caller may send", n)
	}
}

func TestAwaitKey_OnlyMissingKey(t *testing.T) {
	r := testKeys()
	b := newBench(t)
	p := b.publisher(jwkRSA(&r.rsa.PublicKey, "kid", "r"))
	b.addIssuer("ci", p, func(s *auth.JWTSpec) { s.Algorithms = []string{"RS256", "ES256"} })
	b.addJWT("other", nil, b.writeKey("", r.hs256))
	c := b.compileAndFetch()
	for name, d := range map[string]*auth.Delivery{
		"a key that is there": p.signNow(t, jwt.SigningMethodRS256, r.otherRSA, "r"),
		"no kid":              p.signNow(t, jwt.SigningMethodRS256, r.rsa, ""),
		"an algorithm that the caller does not take": p.signNow(t, jwt.SigningMethodEdDSA, r.ed, "new"),
		"a secret":              p.signNow(t, jwt.SigningMethodHS256, []byte(r.hs256), "new"),
		"claims that are wrong": p.signNow(t, jwt.SigningMethodRS256, r.rsa, "r", withClaim("ref", "x")),
		"too late":              p.signNow(t, jwt.SigningMethodRS256, r.rsa, "r", withClaim("exp", time.Now().Unix()-100), withClaim("iat", time.Now().Unix()-200)),
		"another issuer":        p.signNow(t, jwt.SigningMethodRS256, r.rsa, "new", withClaim("iss", issuer)),
		"no credential":         delivery("", http.Header{}),
	} {
		_, err := c.Authenticate(d, nil)
		if err == nil || auth.AwaitKey(t.Context(), err, netip.Addr{}) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if auth.AwaitKey(t.Context(), nil, netip.Addr{}) {
		t.Error("it waited for nothing")
	}
	p.publish(b, jwkRSA(&r.rsa.PublicKey, "kid", "r"), jwkEC(t, &r.p256.PublicKey, "kid", "new"))
	d := p.signNow(t, jwt.SigningMethodES256, r.p256, "new")
	_, err := c.Authenticate(d, nil)
	if err == nil || !auth.AwaitKey(t.Context(), err, netip.Addr{}) {
		t.Fatalf("a new key: %v", err)
	}
	wantCaller(t, c, d, "ci")
	before := p.fetches.Load()
	gone, leave := context.WithCancel(t.Context())
	leave()
	if r := newRefusal(t, c, p.signNow(t, jwt.SigningMethodES256, r.p256, "newer"), auth.Wrong); auth.AwaitKey(gone, r, netip.Addr{}) || p.fetches.Load() != before {
		t.Error("fetched again at once")
	}
}

// TestAwaitKey_SharedIssuer: a refusal by a caller with keys in the file must not hide that the issuer of another
// caller may have a new key.
func TestAwaitKey_SharedIssuer(t *testing.T) {
	for _, names := range [][]string{{"a", "b"}, {"b", "a"}} {
		b := newBench(t)
		p := b.publisher(jwkRSA(&testKeys().rsa.PublicKey, "kid", "r"))
		b.addIssuer(names[0], p, nil)
		b.addJWT(names[1], func(s *auth.JWTSpec) { s.Issuer = p.URL }, b.writeKey("", publicPEM(t, testKeys().otherRSA)))
		c := b.compileAndFetch()
		wantCaller(t, c, p.signNow(t, jwt.SigningMethodRS256, testKeys().rsa, "r"), names[0])
		wantCaller(t, c, p.signNow(t, jwt.SigningMethodRS256, testKeys().otherRSA, "r"), names[1])
		if r := newRefusal(t, c, p.signNow(t, jwt.SigningMethodES256, testKeys().p256, "new"), auth.Wrong); !auth.AwaitKey(t.Context(), r, netip.Addr{}) {
			t.Errorf("%v: it did not wait", names)
		}
	}
}

func TestIssuer_SharedKeySet(t *testing.T) {
	b := newBench(t)
	p := b.publisher(jwkRSA(&testKeys().rsa.PublicKey, "kid", "r"))
	b.addIssuer("one", p, nil)
	b.addIssuer("two", p, nil)
	b.addIssuer("three", p, func(s *auth.JWTSpec) { s.JWKS = p.URL + "/jwks" })
	c := b.compileAndFetch()
	for _, name := range c.Names() {
		wantCaller(t, c, p.signNow(t, jwt.SigningMethodRS256, testKeys().rsa, "r"), name, name)
	}
	first := c.KeySets()
	if len(first) != 2 {
		t.Fatalf("sets %v", first)
	}
	b.inForce = first
	delete(b.specs, "three")
	if second := b.compile().KeySets(); len(second) != 1 || second[onlyKey(second)] != first[onlyKey(second)] {
		t.Errorf("sets %v after %v", second, first)
	}
	// Another CA is another trust.
	ca, err := os.ReadFile(filepath.Join(b.dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.dir, "ca.pem"), append([]byte("again\n"), ca...), 0o600); err != nil {
		t.Fatal(err)
	}
	if third := b.compile().KeySets(); len(third) != 1 || first[onlyKey(third)] != nil {
		t.Errorf("sets %v after %v", third, first)
	}
}

func onlyKey(m map[keyset.Source]*keyset.Set) keyset.Source {
	for k := range m {
		return k
	}
	return keyset.Source{}
}

func TestIssuer_HTTPSOnly(t *testing.T) {
	for _, x := range []struct {
		change func(*auth.JWTSpec)
		want   []string
	}{
		{func(s *auth.JWTSpec) { s.Issuer = "http://issuer.example" }, []string{"jwt.issuer: ", "https"}},
		{func(s *auth.JWTSpec) { s.Issuer = "issuer" }, []string{"jwt.issuer: ", "set jwks or keys"}},
		{func(s *auth.JWTSpec) { s.Issuer = "https://issuer.example?tenant=1" }, []string{"jwt.issuer: "}},
		{func(s *auth.JWTSpec) { s.Issuer = "https://issuer.example#x" }, []string{"jwt.issuer: "}},
		{func(s *auth.JWTSpec) { s.JWKS = "http://issuer.example/jwks" }, []string{"jwt.jwks: ", "over nothing else"}},
		{func(s *auth.JWTSpec) { s.JWKS = "file:///etc/passwd" }, []string{"jwt.jwks: "}},
		{func(s *auth.JWTSpec) { s.JWKS = "https://user@issuer.example/jwks" }, []string{"jwt.jwks: "}},
		{func(s *auth.JWTSpec) { s.JWKS = "https://" }, []string{"jwt.jwks: "}},
		{func(s *auth.JWTSpec) { s.CA = "absent.pem" }, []string{"jwt.ca: ", "absent.pem"}},
		{func(s *auth.JWTSpec) { s.CA = "garbage.pem" }, []string{"jwt.ca: ", "does not contain a certificate"}},
		{func(s *auth.JWTSpec) { s.Algorithms = []string{"HS256"} }, []string{"jwt.algorithms: ", "no algorithm that issuer keys support"}},
	} {
		b := newBench(t)
		if err := os.WriteFile(filepath.Join(b.dir, "garbage.pem"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		b.addJWT("ci", x.change)
		b.wantProblem(append([]string{"error callers.ci."}, x.want...)...)
	}
	b := newBench(t)
	b.publisher()
	b.addJWT("ci", func(s *auth.JWTSpec) { s.CA = "ca.pem" }, b.writeKey("", testKeys().hs256))
	b.wantProblem("error callers.ci.jwt.ca: ", "these are in files")
	b = newBench(t)
	b.addJWT("ci", func(s *auth.JWTSpec) { s.Claims = nil })
	b.wantProblem("warning callers.ci.jwt: has no claims")
}

// pinned returns the required settings for each preset.
func pinned() map[string]auth.JWTSpec {
	return map[string]auth.JWTSpec{
		"github-actions": {Claims: map[string]any{"repository_id": "1234"}},
		"gitlab-ci":      {Claims: map[string]any{"project_id": "15"}},
		"circleci": {
			Issuer: "https://oidc.circleci.com/org/0e2c7a58-12c2-45b9-ab6e-0b2c3f3a8c1d",
			Claims: map[string]any{"oidc.circleci.com/project-id": "7b9e0d0c-47d4-4d7f-9f0c-8f1e3c0f9a11"},
		},
		"buildkite":  {Claims: map[string]any{"organization_slug": "acme", "pipeline_slug": "release"}},
		"kubernetes": {Issuer: "https://kubernetes.default.svc.cluster.local", Claims: map[string]any{"sub": "system:serviceaccount:ci:deployer"}},
		"google":     {Claims: map[string]any{"email": "ci@project.iam.gserviceaccount.com", "email_verified": true}},
	}
}

func TestIssuerPreset_RequiresPins(t *testing.T) {
	for name, good := range pinned() {
		t.Run(name, func(t *testing.T) {
			compile := func(change func(*auth.JWTSpec)) (*bench, *auth.JWTSpec) {
				b := newBench(t)
				spec := good
				spec.Preset, spec.Audience, spec.Claims = name, audience, maps.Clone(good.Claims)
				change(&spec)
				b.caller("ci").JWT = &spec
				return b, &spec
			}
			b, spec := compile(func(*auth.JWTSpec) {})
			if all := b.problems(); all != "" {
				t.Error(all)
			}
			if spec.Issuer == "" || len(spec.Algorithms) == 0 || strings.HasPrefix(spec.Algorithms[0], "HS") {
				t.Errorf("filled in %+v", spec)
			}
			for claim := range good.Claims {
				b, _ := compile(func(s *auth.JWTSpec) { delete(s.Claims, claim) })
				b.wantProblem("error callers.ci.jwt.claims: ", "do not identify your project", claim)
				for _, other := range []any{int64(1234), "", "a b", []any{"1234"}, nil, "*"} {
					b, _ = compile(func(s *auth.JWTSpec) { s.Claims[claim] = other })
					b.wantProblem("error callers.ci.jwt.claims."+claim+": ", "not in the form")
				}
			}
			b, _ = compile(func(s *auth.JWTSpec) { s.Claims = map[string]any{"ref": "refs/heads/main"} })
			b.wantProblem("error callers.ci.jwt.claims: ", "do not identify your project")
			b, _ = compile(func(s *auth.JWTSpec) { s.Algorithms = []string{"HS256"} })
			b.wantProblem("error callers.ci.jwt.algorithms.0: ", name+" signs with")
			b, spec = compile(func(s *auth.JWTSpec) { s.Issuer, s.MaxAge = "https://ghe.example/_services/token", time.Minute })
			if all := b.problems(); all != "" || spec.Issuer != "https://ghe.example/_services/token" || spec.MaxAge != time.Minute {
				t.Errorf("what is written does not hold: %+v %s", spec, all)
			}
			if good.Issuer != "" {
				b, _ = compile(func(s *auth.JWTSpec) { s.Issuer = "" })
				b.wantProblem("error callers.ci.jwt.issuer: ", "is required for "+name)
			}
		})
	}
	// An issuer that the file names by its address alone also signs for many.
	b := newBench(t)
	spec := &auth.JWTSpec{Issuer: "https://token.actions.githubusercontent.com", Audience: audience, Claims: map[string]any{"ref": "refs/heads/main"}}
	b.caller("ci").JWT = spec
	b.wantProblem("error callers.ci.jwt.claims: ", "do not identify your project", "github-actions", "repository_id")
	spec.Claims["repository_id"] = "1234"
	b.compile()
	b = newBench(t)
	b.caller("ci").JWT = &auth.JWTSpec{Preset: "github", Audience: audience}
	b.wantProblem("error callers.ci.jwt.preset: ", `unknown preset "github"`, "buildkite, circleci, github-actions, gitlab-ci, google, kubernetes")
	b = newBench(t)
	b.caller("ci").JWT = &auth.JWTSpec{Preset: "google", Audience: audience, Claims: map[string]any{"sub": "104857600123"}}
	b.compile()
}

func TestIssuerPreset_OtherProject(t *testing.T) {
	r := testKeys()
	b := newBench(t)
	p := b.publisher(jwkRSA(&r.rsa.PublicKey, "kid", "r"))
	b.addIssuer("ci", p, func(s *auth.JWTSpec) {
		s.Preset, s.Claims = "github-actions", map[string]any{"repository_id": "1234", "ref": "refs/heads/main"}
	})
	c := b.compileAndFetch()
	wantCaller(t, c, p.signNow(t, jwt.SigningMethodRS256, r.rsa, "r", withClaim("repository_id", "1234")), "ci")
	for _, id := range []any{nil, "1235", 1234, []any{"1234"}, "12345"} {
		newRefusal(t, c, p.signNow(t, jwt.SigningMethodRS256, r.rsa, "r", withClaim("repository_id", id)), auth.Wrong)
	}
}
