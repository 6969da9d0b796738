package client_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/auth"
	"sallyport/auth/webhook"
	"sallyport/internal/client"
	"sallyport/internal/diag"
)

const secret = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// compileCallers compiles one caller "it". The text is in its key file.
func compileCallers(t *testing.T, text string, spec func(keys []auth.KeySpec) *auth.CallerSpec) *auth.Callers {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "key"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var p diag.List
	c := auth.Compile(map[string]*auth.CallerSpec{"it": spec([]auth.KeySpec{{ID: "1", File: "key"}})}, auth.Sources{Dir: dir}, &p)
	if p.Bad() {
		t.Fatal(p.All())
	}
	return c
}

// wantAccepted checks that the server accepts the headers of a signer.
func wantAccepted(t *testing.T, c *auth.Callers, sign client.Signer) {
	t.Helper()
	now, body := time.Now(), []byte(`{"date":"2026-11-23"}`)
	h := must(sign("abc123", body, now))(t)
	h.Set("Content-Type", "application/json")
	who, err := c.Authenticate(&auth.Delivery{Header: h, Body: body, Now: now}, nil)
	if err != nil || who.Caller != "it" {
		t.Fatalf("%v, %v; headers %v", who, err, h)
	}
	h.Set("Content-Type", "application/json")
	if who, err := c.Authenticate(&auth.Delivery{Header: h, Body: body, Now: now.Add(time.Hour)}, nil); err == nil && !who.Until.IsZero() {
		t.Errorf("still taken after an hour")
	}
}

func TestHMAC_ServerVerifies(t *testing.T) {
	keys := map[string]string{
		"standard-webhooks": "whsec_" + base64.StdEncoding.EncodeToString([]byte(secret[:32])),
		"svix":              "whsec_" + base64.StdEncoding.EncodeToString([]byte(secret[:32])),
		"gitlab":            "whsec_" + base64.StdEncoding.EncodeToString([]byte(secret[:32])),
	}
	for _, preset := range webhook.Presets() {
		t.Run(preset, func(t *testing.T) {
			if preset == "linear" || preset == "discord" {
				return // the time is in the body, and the key is a pair; the tests of auth cover both
			}
			key := secret
			if k, ok := keys[preset]; ok {
				key = k
			}
			c := compileCallers(t, key, func(k []auth.KeySpec) *auth.CallerSpec {
				return &auth.CallerSpec{HMAC: &auth.HMACSpec{Scheme: preset, Keys: k}}
			})
			wantAccepted(t, c, must(client.HMAC(preset, []byte(key)))(t))
		})
	}
}

func TestJWT_ServerVerifies(t *testing.T) {
	rsaKey := must(rsa.GenerateKey(rand.Reader, 2048))(t)
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pair := func(key crypto.Signer) (private, public string) {
		return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(key))(t)})),
			string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: must(x509.MarshalPKIXPublicKey(key.Public()))(t)}))
	}
	for alg, key := range map[string]crypto.Signer{
		"HS256": nil, "HS384": nil, "HS512": nil, "RS256": rsaKey, "PS256": rsaKey, "EdDSA": edKey,
		"ES256": must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t),
		"ES384": must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t),
	} {
		t.Run(alg, func(t *testing.T) {
			private, public := secret, secret
			if key != nil {
				private, public = pair(key)
			}
			c := compileCallers(t, public, func(k []auth.KeySpec) *auth.CallerSpec {
				k[0].Alg = alg
				return &auth.CallerSpec{JWT: &auth.JWTSpec{Issuer: "https://ci", Audience: "hooks", Keys: k, Claims: map[string]any{"ref": "main", "sub": "job"}}}
			})
			j := client.JWT{Alg: alg, Issuer: "https://ci", Audience: "hooks", Subject: "job", Claims: map[string]any{"ref": "main"}}
			wantAccepted(t, c, must(j.Signer([]byte(private)))(t))
		})
	}
}

func TestStatic_ServerVerifies(t *testing.T) {
	c := compileCallers(t, secret, func(k []auth.KeySpec) *auth.CallerSpec {
		return &auth.CallerSpec{Token: &auth.TokenSpec{Header: "X-Gitlab-Token", Keys: k}}
	})
	wantAccepted(t, c, must(client.Static("X-Gitlab-Token", secret))(t))
}

func TestSigners_Refused(t *testing.T) {
	pkcs8 := must(x509.MarshalPKCS8PrivateKey(must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)))(t)
	ec := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	of := func(_ client.Signer, err error) error { return err }
	for name, row := range map[string]struct {
		err   error
		want  string
		usage bool
	}{
		"unknown scheme":        {of(client.HMAC("githob", []byte(secret))), `unknown scheme "githob"`, true},
		"no algorithm":          {of(client.JWT{}.Signer([]byte(secret))), "unsupported algorithm for a token", true},
		"alg none":              {of(client.JWT{Alg: "none"}.Signer([]byte(secret))), "unsupported algorithm for a token", true},
		"short secret":          {of(client.JWT{Alg: "HS512"}.Signer([]byte(secret[:63]))), "reading the key: a secret for HS512 has at least 64 bytes", false},
		"key of another kind":   {of(client.JWT{Alg: "RS256"}.Signer(ec)), "reading the key: ", false},
		"claim with a flag":     {of(client.JWT{Alg: "ES256", Claims: map[string]any{"exp": "never"}}.Signer(ec)), "the claim exp ", true},
		"line break in a token": {of(client.Static("Authorization", "Bearer x\r\nHost: evil")), `the header "Authorization" cannot`, true},
		"token in a name":       {of(client.Static("X: hush", "x")), "the name of the header has", true},
		"PEM as a secret":       {of(client.JWT{Alg: "HS256"}.Signer(ec)), "the key is PEM", true},
		"PEM for a preset":      {of(client.HMAC("github", ec)), "the key is PEM", true},
		"empty token":           {of(client.Static("Authorization", "")), `the header "Authorization" cannot`, true},
	} {
		t.Run(name, func(t *testing.T) {
			if row.err == nil || !strings.HasPrefix(row.err.Error(), row.want) || errors.Is(row.err, client.ErrUsage) != row.usage {
				t.Fatalf("got %v, want %s (usage: %v)", row.err, row.want, row.usage)
			}
			if strings.Contains(row.err.Error(), secret[:16]) {
				t.Errorf("the secret is in %q", row.err)
			}
		})
	}
}

func TestJWT_OtherCurve(t *testing.T) {
	pkcs8 := must(x509.MarshalPKCS8PrivateKey(must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)))(t)
	sign := must(client.JWT{Alg: "ES384"}.Signer(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})))(t)
	if h, err := sign("1", nil, time.Now()); err == nil {
		t.Errorf("signed: %v", h)
	}
}

func TestLines_CurlReads(t *testing.T) {
	h := http.Header{"Webhook-Id": {"1"}, "Authorization": {"Bearer x"}, "Webhook-Signature": {"v1,a", "v1,b"}}
	want := "Authorization: Bearer x\nWebhook-Id: 1\nWebhook-Signature: v1,a\nWebhook-Signature: v1,b\n"
	if got := client.Lines(h); got != want {
		t.Errorf("got %q", got)
	}
}
