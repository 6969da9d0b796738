package httpsig_test

import (
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"sallyport/auth/httpsig"
)

// The test keys and the test request of RFC 9421 B.1 and B.2.
const (
	rfcSecret  = "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ=="
	rfcEd25519 = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAJrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=\n-----END PUBLIC KEY-----"
	rfcP256    = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEqIVYZVLCrPZHGHjP17CTW0/+D9Lf\n" +
		"w0EkjqF7xB4FivAxzic30tMM4GF+hR6Dxh71Z50VGGdldkkDXZCnTNnoXQ==\n-----END PUBLIC KEY-----"
)

func rfcRequest(input, signature string) *httpsig.Request {
	return &httpsig.Request{
		Method: http.MethodPost, Authority: "example.com", URL: &url.URL{Path: "/foo", RawQuery: "param=Value&Pet=dog"},
		Header: http.Header{
			"Date": {"Tue, 20 Apr 2021 02:07:55 GMT"}, "Content-Type": {"application/json"}, "Content-Length": {"18"},
			"Content-Digest":  {"sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:"},
			"Signature-Input": {input}, "Signature": {signature},
		},
		Body: []byte(`{"hello": "world"}`),
	}
}

// newKey returns the key of a public key in PEM, or of a secret.
func newKey(t *testing.T, text string) *httpsig.Key {
	t.Helper()
	var material any = []byte(text)
	if block, _ := pem.Decode([]byte(text)); block != nil {
		var err error
		if material, err = x509.ParsePKIXPublicKey(block.Bytes); err != nil {
			t.Fatal(err)
		}
	}
	key, err := httpsig.NewKey(material)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func keyID(input string) string {
	_, id, _ := strings.Cut(input, `keyid="`)
	return strings.TrimSuffix(id, `"`)
}

// TestVectors_RFC9421 verifies the examples of RFC 9421 B.2 that have a supported algorithm. None of them
// covers enough for a delivery.
func TestVectors_RFC9421(t *testing.T) {
	secret, err := base64.StdEncoding.DecodeString(rfcSecret)
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string]struct{ key, input, signature, base string }{
		"B.2.5": {
			string(secret), `sig-b25=("date" "@authority" "content-type");created=1618884473;keyid="test-shared-secret"`,
			"sig-b25=:pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8=:",
			"\"date\": Tue, 20 Apr 2021 02:07:55 GMT\n\"@authority\": example.com\n\"content-type\": application/json\n" +
				`"@signature-params": ("date" "@authority" "content-type");created=1618884473;keyid="test-shared-secret"`,
		},
		"B.2.6": {
			rfcEd25519, `sig-b26=("date" "@method" "@path" "@authority" "content-type" "content-length");created=1618884473;keyid="test-key-ed25519"`,
			"sig-b26=:wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw==:",
			"\"date\": Tue, 20 Apr 2021 02:07:55 GMT\n\"@method\": POST\n\"@path\": /foo\n\"@authority\": example.com\n" +
				"\"content-type\": application/json\n\"content-length\": 18\n" +
				`"@signature-params": ("date" "@method" "@path" "@authority" "content-type" "content-length");created=1618884473;keyid="test-key-ed25519"`,
		},
	} {
		r := rfcRequest(v.input, v.signature)
		m, err := httpsig.Read(r)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if ok := newKey(t, v.key).Verify(m.Base, m.Signature); !ok || string(m.Base) != v.base || m.KeyID != keyID(v.input) {
			t.Errorf("%s: verified %v, of %q and the base\n%s\nwant\n%s", name, ok, m.KeyID, m.Base, v.base)
		}
		if err := m.CheckCoverage(r, nil); err == nil || !strings.Contains(err.Error(), "does not cover") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// B.2.4 signs a response, so its base is as printed there.
	const b24 = "\"@status\": 200\n\"content-type\": application/json\n" +
		"\"content-digest\": sha-512=:mEWXIS7MaLRuGgxOBdODa3xqM1XdEvxoYhvlCFJ41QJgJc4GTsPp29l5oGX69wWdXymyU0rjJuahq4l5aGgfLQ==:\n" +
		"\"content-length\": 23\n" +
		`"@signature-params": ("@status" "content-type" "content-digest" "content-length");created=1618884473;keyid="test-key-ecc-p256"`
	p256 := newKey(t, rfcP256)
	sig, err := base64.StdEncoding.DecodeString("wNmSUAhwb5LxtOtOpNa6W5xj067m5hFrj0XQ4fvpaCLx0NKocgPquLgyahnzDnDAUy5eCdlYUEkLIj+32oiasw==")
	if err != nil || !p256.Verify([]byte(b24), sig) || p256.Verify([]byte(b24+" "), sig) {
		t.Error("B.2.4 does not verify, or something else does", err)
	}
	if der, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])}); err != nil || p256.Verify([]byte(b24), der) {
		t.Error("a signature in DER verifies", err)
	}
}

// TestNewSigningKey_Invalid checks that a key or an id that no receiver accepts is refused.
func TestNewSigningKey_Invalid(t *testing.T) {
	for why, text := range map[string]string{"public": rfcEd25519, "garbage": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----", "cut": "-----BEGIN"} {
		if _, err := httpsig.NewSigningKey("k", []byte(text)); err == nil {
			t.Errorf("%s: taken", why)
		}
	}
	for _, id := range []string{"", "a\nb", strings.Repeat("x", 257)} {
		if _, err := httpsig.NewSigningKey(id, []byte(rfcSecret)); err == nil {
			t.Errorf("the keyid %q was taken", id)
		}
	}
}
