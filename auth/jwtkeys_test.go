package auth_test

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"

	"sallyport/auth"
)

func encodeBase64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func jwkRSA(k *rsa.PublicKey, more ...string) map[string]any {
	return addMembers(map[string]any{"kty": "RSA", "n": encodeBase64(k.N.Bytes()), "e": encodeBase64(big.NewInt(int64(k.E)).Bytes())}, more)
}

func jwkEC(t *testing.T, k *ecdsa.PublicKey, more ...string) map[string]any {
	t.Helper()
	point, err := k.Bytes() // 4, x, y
	if err != nil {
		t.Fatal(err)
	}
	half := len(point) / 2
	return addMembers(map[string]any{"kty": "EC", "crv": k.Params().Name, "x": encodeBase64(point[1 : half+1]), "y": encodeBase64(point[half+1:])}, more)
}

func jwkEd(k ed25519.PrivateKey, more ...string) map[string]any {
	return addMembers(map[string]any{"kty": "OKP", "crv": "Ed25519", "x": encodeBase64(k[32:])}, more)
}

func addMembers(m map[string]any, pairs []string) map[string]any {
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return m
}

// addKeySet gives a caller a key set, and nothing else.
func (b *bench) addKeySet(name, text string, algorithms ...string) {
	b.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, name+".json"), []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	b.addJWT(name, func(s *auth.JWTSpec) { s.JWKS, s.Algorithms = name+".json", algorithms })
}

func keySet(t *testing.T, keys ...map[string]any) string {
	t.Helper()
	text, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestKeySetFile_KidAndAlgorithm(t *testing.T) {
	r := testKeys()
	b := newBench(t)
	b.addKeySet("ci", keySet(t, jwkRSA(&r.rsa.PublicKey, "kid", "r", "use", "sig", "alg", "RS256"), jwkRSA(&r.otherRSA.PublicKey, "kid", "ps", "alg", "PS256"),
		jwkEC(t, &r.p256.PublicKey, "kid", "e"), jwkEC(t, &r.p521.PublicKey), jwkEd(r.ed, "kid", "d", "alg", "EdDSA"), jwkEC(t, &r.p384.PublicKey, "kid", "e3", "alg", "ES384")))
	c := b.compile()
	kid := func(s string) map[string]any { return map[string]any{"kid": s} }
	wantCaller(t, c, bearerDelivery(signToken(t, jwt.SigningMethodRS256, r.rsa, validClaims(), kid("r"))), "ci")
	wantCaller(t, c, bearerDelivery(signToken(t, jwt.SigningMethodPS256, r.otherRSA, validClaims(), kid("ps"))), "ci")
	wantCaller(t, c, bearerDelivery(signToken(t, jwt.SigningMethodES256, r.p256, validClaims(), kid("e"))), "ci")
	wantCaller(t, c, bearerDelivery(signToken(t, jwt.SigningMethodES384, r.p384, validClaims(), kid("e3"))), "ci")
	wantCaller(t, c, bearerDelivery(signToken(t, jwt.SigningMethodES512, r.p521, validClaims())), "ci")
	wantCaller(t, c, bearerDelivery(signToken(t, jwt.SigningMethodEdDSA, r.ed, validClaims(), kid("d"))), "ci")
	wantCaller(t, c, bearerDelivery(signToken(t, jwt.SigningMethodRS256, r.rsa, validClaims())), "ci")
	newRefusal(t, c, bearerDelivery(signToken(t, jwt.SigningMethodRS256, r.rsa, validClaims(), kid("ps"))), auth.Wrong)
	newRefusal(t, c, bearerDelivery(signToken(t, jwt.SigningMethodRS256, r.otherRSA, validClaims(), kid("ps"))), auth.Wrong)
	newRefusal(t, c, bearerDelivery(signToken(t, jwt.SigningMethodRS512, r.rsa, validClaims(), kid("r"))), auth.Wrong)
	newRefusal(t, c, bearerDelivery(signToken(t, jwt.SigningMethodHS256, []byte(publicPEM(t, r.rsa)), validClaims(), kid("r"))), auth.Wrong)
}

func TestKeySetFile_InvalidKeys(t *testing.T) {
	r := testKeys()
	good := jwkRSA(&r.rsa.PublicKey, "kid", "r")
	x, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	change := func(m map[string]any, name string, v any) map[string]any {
		m = maps.Clone(m)
		m[name] = v
		return m
	}
	private := jwkEC(t, &r.p256.PublicKey)
	private["d"] = "AA"
	for name, bad := range map[string]map[string]any{
		"for encryption":      change(good, "use", "enc"),
		"use of a wrong type": change(good, "use", 1),
		"key_ops":             change(good, "key_ops", []any{"encrypt"}),
		"key_ops text":        change(good, "key_ops", "verify"),
		"secret":              {"kty": "oct", "k": encodeBase64([]byte(secretA))},
		"private":             private,
		"weak RSA":            jwkRSA(&r.weak.PublicKey),
		"even exponent":       change(good, "e", encodeBase64([]byte{4})),
		"exponent of one":     change(good, "e", encodeBase64([]byte{1})),
		"huge exponent":       change(good, "e", encodeBase64(append([]byte{1}, 0, 0, 0, 0, 0, 1, 0, 1))),
		"unknown type":        change(good, "kty", "XYZ"),
		"no type":             change(good, "kty", ""),
		"off the curve":       change(jwkEC(t, &r.p256.PublicKey), "x", encodeBase64(make([]byte, 32))),
		"another curve":       change(jwkEC(t, &r.p256.PublicKey), "crv", "P-384"),
		"unknown curve":       change(jwkEC(t, &r.p256.PublicKey), "crv", "secp256k1"),
		"key agreement":       {"kty": "OKP", "crv": "X25519", "x": encodeBase64(x.PublicKey().Bytes())},
		"alg none":            change(good, "alg", "none"),
		"alg of another type": change(good, "alg", "HS256"),
		"encryption alg":      change(good, "alg", "RSA-OAEP"),
		"kid of a wrong type": change(good, "kid", 7),
		"padded":              change(good, "n", encodeBase64(r.rsa.N.Bytes())+"=="),
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.addKeySet("ci", keySet(t, jwkEd(r.ed), bad))
			b.wantProblem("error callers.ci.jwt.jwks: keys[1]")
		})
	}
	for name, text := range map[string]string{
		"not JSON": "x", "no keys": `{}`, "empty": `{"keys":[]}`, "a list": `[]`, "duplicate names": `{"keys":[{"kty":"RSA","kty":"oct"}]}`,
		"a number": `{"keys":[1]}`, "two of a kid": keySet(t, good, good), "something behind it": keySet(t, good) + "{}",
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.addKeySet("ci", text)
			b.wantProblem("error callers.ci.jwt.jwks: ")
		})
	}
	b := newBench(t)
	b.addKeySet("ci", keySet(t, good), "ES256")
	b.wantProblem("error callers.ci.jwt.jwks: has no key for any of algorithms")
}

func TestKeySetFile_AlgorithmList(t *testing.T) {
	r := testKeys()
	b := newBench(t)
	b.addKeySet("ci", keySet(t, jwkRSA(&r.rsa.PublicKey), jwkEC(t, &r.p256.PublicKey)), "PS256")
	c := b.compile()
	wantCaller(t, c, bearerDelivery(signToken(t, jwt.SigningMethodPS256, r.rsa, validClaims())), "ci")
	newRefusal(t, c, bearerDelivery(signToken(t, jwt.SigningMethodRS256, r.rsa, validClaims())), auth.Wrong)
	newRefusal(t, c, bearerDelivery(signToken(t, jwt.SigningMethodES256, r.p256, validClaims())), auth.Wrong)
}

func TestJWTKey_Certificate(t *testing.T) {
	r := testKeys()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ci"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, r.p256.Public(), r.p256)
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t)
	b.addJWT("ci", nil, b.writeKey("", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))))
	wantCaller(t, b.compile(), bearerDelivery(signToken(t, jwt.SigningMethodES256, r.p256, validClaims())), "ci")
}

func TestJWTKey_Invalid(t *testing.T) {
	r := testKeys()
	der, err := x509.MarshalPKCS8PrivateKey(r.p256)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	for _, x := range []struct{ text, alg, want string }{
		{publicPEM(t, r.weak), "", "1024 bits"},
		{block("PRIVATE KEY", der), "", "is a private key"},
		{block("EC PRIVATE KEY", der), "", "is a private key"},
		{block("PUBLIC KEY", []byte("x")), "", "does not parse"},
		{block("CERTIFICATE", []byte("x")), "", "does not parse"},
		{block("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&r.rsa.PublicKey)), "", "not a PEM block of type"},
		{"-----BEGIN nonsense", "", "not valid PEM"},
		{publicPEM(t, r.rsa) + publicPEM(t, r.p256), "", "more than one PEM block"},
		{publicPEM(t, r.rsa), "HS256", "not for HS256"},
		{publicPEM(t, r.rsa), "ES256", "not for ES256"},
		{publicPEM(t, r.p256), "ES384", "not for ES384"},
		{publicPEM(t, r.rsa), "none", "unknown algorithm"},
		{secretA, "RS256", "needs a public key"},
		{"short secret of 31 bytes, oh no", "", "at least 32 for HS256"},
		{strings.Repeat("x", 47), "HS384", "at least 48 for HS384"},
		{strings.Repeat("x", 63), "HS512", "at least 64 for HS512"},
	} {
		b := newBench(t)
		k := b.writeKey("k", x.text)
		k.Alg = x.alg
		b.addJWT("ci", nil, k)
		b.wantProblem("error callers.ci.jwt.keys.0", x.want)
	}
}

func TestJWTKey_FileMode(t *testing.T) {
	b := newBench(t)
	public, secret := b.writeKey("p", publicPEM(t, testKeys().p256)), b.writeKey("s", secretA)
	for _, k := range []auth.KeySpec{public, secret} {
		if err := os.Chmod(filepath.Join(b.dir, k.File), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b.addJWT("ci", nil, public)
	b.compile()
	b.addJWT("ci", nil, secret)
	b.wantProblem("error callers.ci.jwt.keys.0.file", "its mode is 0644")
}

func TestCompileJWT_RequiredRules(t *testing.T) {
	b := newBench(t)
	b.caller("a").JWT = &auth.JWTSpec{MaxAge: -1, Leeway: 1e18, Algorithms: []string{"none"}, Claims: map[string]any{
		"list": []any{"x"}, "null": nil, "empty": map[string]any{}, "deep": map[string]any{"list": []any{}},
	}}
	for _, want := range []string{"issuer: is missing", "audience: is missing", "max_age", "leeway", "algorithms.0", "claims.list", "claims.null", "claims.empty", "claims.deep.list"} {
		b.wantProblem("error callers.a.jwt", want)
	}
}

func TestJWTKey_AmbiguousAlgorithm(t *testing.T) {
	b := newBench(t)
	b.addJWT("ci", func(s *auth.JWTSpec) { s.Algorithms = []string{"RS256", "PS256"} }, b.writeKey("", publicPEM(t, testKeys().rsa)))
	b.wantProblem("error callers.ci.jwt.keys.0: ", "set alg")
	b = newBench(t)
	b.addJWT("ci", func(s *auth.JWTSpec) { s.Algorithms = []string{"ES256"} }, b.writeKey("", publicPEM(t, testKeys().ed)))
	b.wantProblem("error callers.ci.jwt.keys.0: ", "EdDSA, which algorithms does not list")
	b = newBench(t)
	b.addJWT("ci", func(s *auth.JWTSpec) { s.Algorithms = []string{"HS256", "HS512"} }, b.writeKey("", secretA))
	b.wantProblem("error callers.ci.jwt.keys.0: ", "several of algorithms")
}
