package auth_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"maps"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"sallyport/auth"
)

const (
	issuer   = "https://issuer.example"
	audience = "https://hooks.example"
)

type keyring struct {
	rsa, weak           *rsa.PrivateKey
	p256, p384, p521    *ecdsa.PrivateKey
	ed                  ed25519.PrivateKey
	otherRSA            *rsa.PrivateKey
	hs256, hs384, hs512 string
}

// ring makes the keys once: RSA takes its time.
//
//nolint:gochecknoglobals // read-only after the first call
var testKeys = sync.OnceValue(func() keyring {
	one := func(bits int) *rsa.PrivateKey {
		k, _ := rsa.GenerateKey(rand.Reader, bits)
		return k
	}
	ec := func(c elliptic.Curve) *ecdsa.PrivateKey {
		k, _ := ecdsa.GenerateKey(c, rand.Reader)
		return k
	}
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	return keyring{
		one(2048), one(1024), ec(elliptic.P256()), ec(elliptic.P384()), ec(elliptic.P521()), ed, one(2048),
		strings.Repeat("k", 32), strings.Repeat("k", 48), strings.Repeat("k", 64),
	}
})

func publicPEM(t testing.TB, key crypto.Signer) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// validClaims returns the claims of a token that is valid now.
func validClaims(change ...func(jwt.MapClaims)) jwt.MapClaims {
	c := jwt.MapClaims{
		"iss": issuer, "aud": audience, "iat": now().Unix() - 5, "exp": now().Unix() + 300,
		"jti": "id-1", "ref": "refs/heads/main", "run": 7, "kubernetes.io": map[string]any{"namespace": "ci"}, "protected": true,
	}
	for _, f := range change {
		f(c)
	}
	return c
}

func withClaim(name string, v any) func(jwt.MapClaims) {
	return func(c jwt.MapClaims) {
		if c[name] = v; v == nil {
			delete(c, name)
		}
	}
}

func signToken(t testing.TB, method jwt.SigningMethod, key any, c jwt.MapClaims, header ...map[string]any) string {
	t.Helper()
	tok := jwt.NewWithClaims(method, c)
	for _, h := range header {
		maps.Copy(tok.Header, h)
	}
	raw, err := tok.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// rawToken signs header and payload as they are, well formed or not, with HS256.
func rawToken(header, payload, secret string) string {
	text := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(payload))
	sig, _ := jwt.SigningMethodHS256.Sign(text, []byte(secret))
	return text + "." + base64.RawURLEncoding.EncodeToString(sig)
}

func bearerDelivery(raw string) *auth.Delivery {
	return delivery(`{"a":1}`, headers("Authorization", "Bearer "+raw))
}

func (b *bench) addJWT(name string, change func(*auth.JWTSpec), keys ...auth.KeySpec) {
	spec := &auth.JWTSpec{
		Issuer: issuer, Audience: audience, Keys: keys,
		Claims: map[string]any{"ref": "refs/heads/main", "run": uint64(7), "kubernetes.io": map[string]any{"namespace": "ci"}, "protected": true},
	}
	if change != nil {
		change(spec)
	}
	b.caller(name).JWT = spec
}

// newHS256Callers has one caller, ci, with an HS256 key without an id.
func newHS256Callers(t testing.TB) *auth.Callers {
	t.Helper()
	b := newBench(t)
	b.addJWT("ci", nil, b.writeKey("", testKeys().hs256))
	return b.compile()
}

func signHS256(t testing.TB, c jwt.MapClaims, header ...map[string]any) string {
	t.Helper()
	return signToken(t, jwt.SigningMethodHS256, []byte(testKeys().hs256), c, header...)
}

func TestJWT_EachAlgorithm(t *testing.T) {
	r := testKeys()
	for _, x := range []struct {
		method jwt.SigningMethod
		alg    string // in the configuration
		key    any
		file   string
	}{
		{jwt.SigningMethodHS256, "", []byte(r.hs256), r.hs256},
		{jwt.SigningMethodHS384, "HS384", []byte(r.hs384), r.hs384},
		{jwt.SigningMethodHS512, "HS512", []byte(r.hs512), r.hs512},
		{jwt.SigningMethodRS256, "", r.rsa, publicPEM(t, r.rsa)},
		{jwt.SigningMethodRS384, "RS384", r.rsa, publicPEM(t, r.rsa)},
		{jwt.SigningMethodRS512, "RS512", r.rsa, publicPEM(t, r.rsa)},
		{jwt.SigningMethodPS256, "PS256", r.rsa, publicPEM(t, r.rsa)},
		{jwt.SigningMethodPS384, "PS384", r.rsa, publicPEM(t, r.rsa)},
		{jwt.SigningMethodPS512, "PS512", r.rsa, publicPEM(t, r.rsa)},
		{jwt.SigningMethodES256, "", r.p256, publicPEM(t, r.p256)},
		{jwt.SigningMethodES384, "", r.p384, publicPEM(t, r.p384)},
		{jwt.SigningMethodES512, "", r.p521, publicPEM(t, r.p521)},
		{jwt.SigningMethodEdDSA, "", r.ed, publicPEM(t, r.ed)},
	} {
		t.Run(x.method.Alg(), func(t *testing.T) {
			b := newBench(t)
			key := b.writeKey("k1", x.file)
			key.Alg = x.alg
			b.addJWT("ci", nil, key)
			c := b.compile()
			id := wantCaller(t, c, bearerDelivery(signToken(t, x.method, x.key, validClaims())), "ci")
			if id.Kind != "jwt" || id.Key != "k1" || !id.OneBody || id.Replay == "" || id.Claims["ref"] != "refs/heads/main" {
				t.Errorf("identity %+v", id)
			}
			if want := now().Add(10 * time.Minute); !id.Until.Equal(want) {
				t.Errorf("until %s, want %s", id.Until, want)
			}
			raw := signToken(t, x.method, x.key, validClaims())
			dot := strings.LastIndex(raw, ".") + 1
			size := len(raw) - dot
			newRefusal(t, c, bearerDelivery(raw[:dot]), auth.Malformed)
			newRefusal(t, c, bearerDelivery(raw[:dot]+strings.Repeat("A", size)), auth.Wrong)
			newRefusal(t, c, bearerDelivery(raw[:dot]+changeCharacter(raw[dot:], 3)), auth.Wrong)
			// The same key family under every other algorithm.
			for _, alg := range []string{"none", "None", "NONE", "nOnE", "", "HS256", "RS256", "PS256", "ES256", "EdDSA", "RS1", "HS1", "ES256K"} {
				if alg != x.method.Alg() {
					newRefusal(t, c, bearerDelivery(withAlg(raw, alg)), auth.Wrong)
				}
			}
		})
	}
}

// withAlg rewrites a token's alg and leaves its signature.
func withAlg(raw, alg string) string {
	parts := strings.Split(raw, ".")
	header, _ := json.Marshal(map[string]string{"alg": alg, "typ": "JWT"})
	return base64.RawURLEncoding.EncodeToString(header) + "." + parts[1] + "." + parts[2]
}

// TestJWT_AlgorithmConfusion: the algorithm "none", and an RSA key as an HMAC secret (RFC 8725 2.1).
func TestJWT_AlgorithmConfusion(t *testing.T) {
	r := testKeys()
	b := newBench(t)
	b.addJWT("rsa", nil, b.writeKey("k", publicPEM(t, r.rsa)))
	b.addJWT("ec", nil, b.writeKey("k", publicPEM(t, r.p256)))
	c := b.compile()
	for _, alg := range []string{"none", "None", "NONE", "nOnE", "none ", ""} {
		for _, sig := range []string{"AA", strings.Repeat("A", 342)} {
			parts := strings.Split(rawToken(`{"alg":"`+alg+`"}`, encodePayload(t, validClaims()), "x"), ".")
			newRefusal(t, c, bearerDelivery(parts[0]+"."+parts[1]+"."+sig), auth.Wrong)
		}
		parts := strings.Split(rawToken(`{"alg":"`+alg+`"}`, encodePayload(t, validClaims()), "x"), ".")
		newRefusal(t, c, bearerDelivery(parts[0]+"."+parts[1]+"."), auth.Malformed)
	}
	for _, signer := range []crypto.Signer{r.rsa, r.p256} {
		der, _ := x509.MarshalPKIXPublicKey(signer.Public())
		text := publicPEM(t, signer)
		secrets := []string{text, strings.TrimSpace(text), strings.ReplaceAll(text, "\n", "\r\n"), string(der), base64.StdEncoding.EncodeToString(der)}
		if k, ok := signer.Public().(*rsa.PublicKey); ok {
			secrets = append(secrets, string(x509.MarshalPKCS1PublicKey(k)), string(k.N.Bytes()))
		}
		for _, secret := range secrets {
			for _, m := range []*jwt.SigningMethodHMAC{jwt.SigningMethodHS256, jwt.SigningMethodHS384, jwt.SigningMethodHS512} {
				newRefusal(t, c, bearerDelivery(signToken(t, m, []byte(secret), validClaims())), auth.Wrong)
				newRefusal(t, c, bearerDelivery(signToken(t, m, []byte(secret), validClaims(), map[string]any{"kid": "k"})), auth.Wrong)
			}
		}
	}
	newRefusal(t, newHS256Callers(t), bearerDelivery(signToken(t, jwt.SigningMethodHS256, []byte(""), validClaims())), auth.Wrong)
}

func encodePayload(t testing.TB, c jwt.MapClaims) string {
	t.Helper()
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestJWT_HeaderExtensions(t *testing.T) {
	c := newHS256Callers(t)
	own, _ := json.Marshal(map[string]string{"kty": "oct", "k": base64.RawURLEncoding.EncodeToString([]byte(testKeys().hs256))})
	for name, v := range map[string]any{
		"crit": []string{"exp"}, "b64": false, "jwk": json.RawMessage(own), "jku": "https://evil.example/jwks", "x5u": "https://evil.example/x",
		"x5c": []string{"AA"}, "zip": "DEF", "cty": "JWT", "enc": "A128GCM",
	} {
		newRefusal(t, c, bearerDelivery(signHS256(t, validClaims(), map[string]any{name: v})), auth.Malformed)
		newRefusal(t, c, bearerDelivery(signHS256(t, validClaims(), map[string]any{name: nil})), auth.Malformed)
	}
	for _, typ := range []any{"JWE", "secevent+jwt", "dpop+jwt", "", 1, nil, []string{"JWT"}, "JWT ", "application/application/jwt"} {
		newRefusal(t, c, bearerDelivery(signHS256(t, validClaims(), map[string]any{"typ": typ})), auth.Malformed)
	}
	for _, typ := range []string{"JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt", "application/JWT"} {
		wantCaller(t, c, bearerDelivery(signHS256(t, validClaims(), map[string]any{"typ": typ})), "ci")
	}
	wantCaller(t, c, bearerDelivery(rawToken(`{"alg":"HS256","x5t":"AA"}`, encodePayload(t, validClaims()), testKeys().hs256)), "ci")
	for _, header := range []string{
		`{"alg":"HS256","alg":"HS256"}`, `{"alg":"HS256","alg":"none"}`, `{"ALG":"HS256"}`, `{"alg":["HS256"]}`, `{"alg":null}`, `{}`, `[]`, `null`, `"x"`, `{"alg":"HS256"`,
		`{"alg":"HS256"}x`, `{"alg":"HS256"}{}`, "\xef\xbb\xbf" + `{"alg":"HS256"}`, `{"alg":"HS256","x":"` + "\xff" + `"}`, strings.Repeat("[", 1000),
	} {
		newRefusal(t, c, bearerDelivery(rawToken(header, encodePayload(t, validClaims()), testKeys().hs256)), auth.Malformed)
	}
}

func TestJWT_KidSelectsKey(t *testing.T) {
	b := newBench(t)
	b.addJWT("ci", nil, b.writeKey("one", secretA), b.writeKey("two", secretB))
	c := b.compile()
	with := func(secret string, kid any) *auth.Delivery {
		h := map[string]any{}
		if kid != nil {
			h["kid"] = kid
		}
		return bearerDelivery(signToken(t, jwt.SigningMethodHS256, []byte(secret), validClaims(), h))
	}
	if id := wantCaller(t, c, with(secretB, "two"), "ci"); id.Key != "two" {
		t.Errorf("the key is %s", id.Key)
	}
	wantCaller(t, c, with(secretB, nil), "ci")
	newRefusal(t, c, with(secretB, "one"), auth.Wrong)
	newRefusal(t, c, with(secretC, nil), auth.Wrong)
	for _, kid := range []string{"../../dev/null", "/dev/null", "two\x00", "two' OR '1'='1", "TWO", "two ", "1", strings.Repeat("x", 256)} {
		newRefusal(t, c, with(secretB, kid), auth.Wrong)
		newRefusal(t, c, with("", kid), auth.Wrong)
	}
	for _, kid := range []any{"", 2, true, []string{"two"}, map[string]any{"a": 1}, strings.Repeat("x", 257)} {
		newRefusal(t, c, with(secretB, kid), auth.Malformed)
	}
	newRefusal(t, c, bearerDelivery(rawToken(`{"alg":"HS256","kid":null}`, encodePayload(t, validClaims()), secretB)), auth.Malformed)
	// Senders choose the key ids, so a key without an id accepts any.
	wantCaller(t, newHS256Callers(t), bearerDelivery(signHS256(t, validClaims(), map[string]any{"kid": "theirs"})), "ci")
}

func TestJWT_OneSpelling(t *testing.T) {
	c := newHS256Callers(t)
	raw := signHS256(t, validClaims())
	wantCaller(t, c, bearerDelivery(raw), "ci")
	parts := strings.Split(raw, ".")
	for _, other := range []string{
		raw + "=", raw + "==", raw + "\n", raw + " ", " " + raw, raw[:len(raw)-4] + "\r\n" + raw[len(raw)-4:], parts[0] + "=." + parts[1] + "." + parts[2],
		parts[0] + "\n." + parts[1] + "." + parts[2], parts[0] + "." + parts[1] + "\r." + parts[2], "." + parts[1] + "." + parts[2], parts[0] + ".." + parts[2], "..",
		strings.Repeat("A", 20<<10) + "." + parts[1] + "." + parts[2], raw + "é", parts[0] + ".%." + parts[2],
	} {
		newRefusal(t, c, bearerDelivery(other), auth.Malformed)
	}
	// The last character of 32 bytes has two spare bits: a respelling of it
	// decodes to the same signature unless the decoder is strict.
	last := strings.IndexByte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", raw[len(raw)-1])
	respelled := raw[:len(raw)-1] + string("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[last^1])
	newRefusal(t, c, bearerDelivery(respelled), auth.Wrong)
	// Five segments are a JWE, which is not supported and not a token of any caller.
	newRefusal(t, c, bearerDelivery(raw+".AA.AA"), auth.Malformed)
	newRefusal(t, c, bearerDelivery("x"), auth.Malformed)
	// The scheme's name may have any case; everything else must match.
	wantCaller(t, c, delivery("", headers("Authorization", "bearer "+raw)), "ci")
	newRefusal(t, c, delivery("", headers("Authorization", raw)), auth.Malformed)
	newRefusal(t, c, delivery("", headers("Authorization", "Bearer\t"+raw)), auth.Malformed)
	newRefusal(t, c, delivery("", headers("Authorization", "Bearer  "+raw)), auth.Malformed)
	newRefusal(t, c, delivery("", headers("Authorization", "Basic "+raw)), auth.Malformed)
	newRefusal(t, c, delivery("", headers("Authorization", "Bearer "+raw, "Authorization", "Bearer "+raw)), auth.Malformed)
	newRefusal(t, c, delivery("", headers("Authorization", "Bearer "+raw+", Bearer "+raw)), auth.Malformed)
	// In any other header, a token is not a credential.
	for _, name := range []string{"X-Authorization", "Proxy-Authorization", "X-Forwarded-Access-Token", "Cookie"} {
		newRefusal(t, c, delivery("access_token="+raw, headers(name, "Bearer "+raw)), auth.Absent)
	}
}

func TestJWT_MalformedSignature(t *testing.T) {
	r := testKeys()
	b := newBench(t)
	b.addJWT("ec", nil, b.writeKey("k", publicPEM(t, r.p256)))
	c := b.compile()
	raw := signToken(t, jwt.SigningMethodES256, r.p256, validClaims())
	wantCaller(t, c, bearerDelivery(raw), "ec")
	dot := strings.LastIndex(raw, ".") + 1
	sig, _ := base64.RawURLEncoding.DecodeString(raw[dot:])
	first, second := new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])
	der, err := asn1.Marshal(struct{ R, S *big.Int }{first, second})
	if err != nil {
		t.Fatal(err)
	}
	n := elliptic.P256().Params().N
	pad := func(x *big.Int) []byte { return x.FillBytes(make([]byte, 32)) }
	zero, one := make([]byte, 32), pad(big.NewInt(1))
	for _, bad := range [][]byte{
		slices.Concat(zero, zero),
		slices.Concat(one, zero),
		slices.Concat(zero, one),
		slices.Concat(pad(n), pad(n)),
		slices.Concat(pad(n), one),
		der,
		sig[:63],
		slices.Concat([]byte{0}, sig),
		slices.Concat(sig, []byte{0}),
		slices.Concat(sig[32:], sig[:32]),
		{0},
	} {
		newRefusal(t, c, bearerDelivery(raw[:dot]+base64.RawURLEncoding.EncodeToString(bad)), auth.Wrong)
	}
	// (r, n-s) verifies as well, which ECDSA cannot help: it must be the same delivery.
	for _, jti := range []any{"id-1", nil} {
		raw := signToken(t, jwt.SigningMethodES256, r.p256, validClaims(withClaim("jti", jti)))
		dot := strings.LastIndex(raw, ".") + 1
		sig, _ := base64.RawURLEncoding.DecodeString(raw[dot:])
		twin := slices.Concat(sig[:32], pad(new(big.Int).Sub(n, new(big.Int).SetBytes(sig[32:]))))
		a := wantCaller(t, c, bearerDelivery(raw), "ec")
		other, err := c.Authenticate(bearerDelivery(raw[:dot]+base64.RawURLEncoding.EncodeToString(twin)), nil)
		if err == nil && other.Replay != a.Replay {
			t.Error("a malleated signature passes for another delivery")
		}
	}
}

func TestJWT_Times(t *testing.T) {
	c := newHS256Callers(t)
	at := now().Unix()
	for _, x := range []struct {
		name   string
		value  any
		reason auth.Reason
	}{
		{"exp", nil, auth.Malformed},
		{"exp", "1900000000", auth.Malformed},
		{"exp", true, auth.Malformed},
		{"exp", -1, auth.Malformed},
		{"exp", 0, auth.Malformed},
		{"exp", json.RawMessage("1e10"), auth.Malformed},
		{"exp", json.RawMessage("1E400"), auth.Malformed},
		{"exp", json.RawMessage(strings.Repeat("9", 400)), auth.Malformed},
		{"exp", []any{at + 10}, auth.Malformed},
		{"exp", at - 30, auth.Stale},
		{"exp", at - 6, auth.Wrong}, // before iat
		{"exp", at + 86400, auth.Wrong},
		{"exp", 100_000_000_000, auth.Malformed},
		{"exp", 99_999_999_999, auth.Wrong},
		{"iat", 99_999_999_999, auth.Wrong}, // after exp
		{"iat", nil, auth.Malformed},
		{"iat", "1800000000", auth.Malformed},
		{"iat", -5, auth.Malformed},
		{"iat", at + 31, auth.Stale},
		{"iat", at - 631, auth.Stale},
		{"iat", 1, auth.Wrong},
		{"nbf", "x", auth.Malformed},
		{"nbf", at + 31, auth.Stale},
		{"nbf", json.RawMessage("null"), auth.Malformed},
	} {
		change := []func(jwt.MapClaims){withClaim(x.name, x.value)}
		if x.name == "exp" && x.reason == auth.Stale {
			change = append(change, withClaim("iat", at-60))
		}
		r := newRefusal(t, c, bearerDelivery(signHS256(t, validClaims(change...))), x.reason)
		if r.Caller != "ci" {
			t.Errorf("%s %v: the verified caller is not named", x.name, x.value)
		}
	}
	for name, v := range map[string]any{"iat": at + 30, "nbf": at - 600, "exp": json.RawMessage("1800000010.5")} {
		wantCaller(t, c, bearerDelivery(signHS256(t, validClaims(withClaim(name, v)))), "ci")
	}
	wantCaller(t, c, bearerDelivery(signHS256(t, validClaims(withClaim("iat", at-60), withClaim("exp", at-29)))), "ci")
	wantCaller(t, c, bearerDelivery(signHS256(t, validClaims(withClaim("iat", at-630)))), "ci")
}

func TestJWT_AudienceAndIssuer(t *testing.T) {
	c := newHS256Callers(t)
	for _, aud := range []any{
		nil, "", "https://hooks", "https://hooks.example/", "https://hooks.example.evil.example", "HTTPS://HOOKS.EXAMPLE", "*", 1, true,
		[]any{},
		[]any{"other"},
		[]any{audience, 1},
		[]any{audience, nil},
		[]any{[]any{audience}},
		map[string]any{"aud": audience},
		json.RawMessage("null"),
	} {
		newRefusal(t, c, bearerDelivery(signHS256(t, validClaims(withClaim("aud", aud)))), auth.Wrong)
	}
	wantCaller(t, c, bearerDelivery(signHS256(t, validClaims(withClaim("aud", []any{"other", audience})))), "ci")
	for _, iss := range []any{nil, "", issuer + "/", "https://issuer", "HTTPS://ISSUER.EXAMPLE", []any{issuer}, map[string]any{"iss": issuer}, 1} {
		newRefusal(t, c, bearerDelivery(signHS256(t, validClaims(withClaim("iss", iss)))), auth.Wrong)
	}
}

func TestJWT_ClaimTypes(t *testing.T) {
	c := newHS256Callers(t)
	for name, values := range map[string][]any{
		"ref":           {nil, "refs/heads/main2", "refs/heads", "", []any{"refs/heads/main"}, true, "Refs/heads/main"},
		"run":           {nil, "7", 7.5, 8, true, []any{7}, json.RawMessage("7.0"), json.RawMessage("70e-1")},
		"protected":     {nil, "true", 1, false, []any{true}},
		"kubernetes.io": {nil, "ci", map[string]any{}, map[string]any{"namespace": "other"}, map[string]any{"namespace": map[string]any{"namespace": "ci"}}, []any{map[string]any{"namespace": "ci"}}},
	} {
		for _, v := range values {
			r := newRefusal(t, c, bearerDelivery(signHS256(t, validClaims(withClaim(name, v)))), auth.Wrong)
			if r.Caller != "ci" || !strings.Contains(r.Detail, name) {
				t.Errorf("%s=%v: refusal %+v", name, v, r)
			}
		}
	}
	for _, twice := range []string{`,"ref":"refs/heads/main"}`, `,"aud":"x"}`, `,"kubernetes.io":{"namespace":"ci","namespace":"ci"}}`} {
		text := strings.TrimSuffix(encodePayload(t, validClaims()), "}") + twice
		newRefusal(t, c, bearerDelivery(rawToken(`{"alg":"HS256"}`, text, testKeys().hs256)), auth.Malformed)
	}
}

func TestJWT_KeyOfOtherIssuer(t *testing.T) {
	b := newBench(t)
	b.addJWT("ours", nil, b.writeKey("k", secretA))
	b.addJWT("theirs", func(s *auth.JWTSpec) { s.Issuer = "https://other.example" }, b.writeKey("k", secretB))
	c := b.compile()
	cross := func(secret, iss string) *auth.Delivery {
		return bearerDelivery(signToken(t, jwt.SigningMethodHS256, []byte(secret), validClaims(withClaim("iss", iss))))
	}
	wantCaller(t, c, cross(secretA, issuer), "ours")
	wantCaller(t, c, cross(secretB, "https://other.example"), "theirs", "ours")
	newRefusal(t, c, cross(secretB, issuer), auth.Wrong)
	newRefusal(t, c, cross(secretA, "https://other.example"), auth.Wrong)
}

func TestJWT_CallersByClaims(t *testing.T) {
	b := newBench(t)
	for _, name := range []string{"main", "dev"} {
		b.addJWT(name, func(s *auth.JWTSpec) { s.Claims = map[string]any{"ref": name} }, b.writeKey("", secretA))
	}
	c := b.compile()
	for _, name := range []string{"main", "dev"} {
		raw := signToken(t, jwt.SigningMethodHS256, []byte(secretA), validClaims(withClaim("ref", name)))
		wantCaller(t, c, bearerDelivery(raw), name, "main")
		wantCaller(t, c, bearerDelivery(raw), name, "dev")
	}
	raw := signToken(t, jwt.SigningMethodHS256, []byte(secretA), validClaims(withClaim("ref", "x")))
	if r := newRefusal(t, c, bearerDelivery(raw), auth.Wrong, "main"); r.Caller != "main" {
		t.Errorf("refusal %+v", r)
	}
}

func TestJWT_ReplayWithOtherBody(t *testing.T) {
	c := newHS256Callers(t)
	send := func(body string, change ...func(jwt.MapClaims)) *auth.Identity {
		d := bearerDelivery(signHS256(t, validClaims(change...)))
		d.Body = []byte(body)
		return wantCaller(t, c, d, "ci")
	}
	first := send("a")
	if again := send("b", withClaim("exp", now().Unix()+200)); again.Replay != first.Replay || again.BodyDigest == first.BodyDigest {
		t.Error("a jti used again with another body is not reported")
	}
	if send("a", withClaim("jti", "id-2")).Replay == first.Replay {
		t.Error("two ids are one delivery")
	}
	one, two := send("a", withClaim("jti", nil)), send("b", withClaim("jti", nil))
	if one.Replay != two.Replay || one.Replay == first.Replay {
		t.Error("a token without jti is not named by what it signs")
	}
	for _, jti := range []any{"", 1, []any{"x"}, json.RawMessage("null")} {
		newRefusal(t, c, bearerDelivery(signHS256(t, validClaims(withClaim("jti", jti)))), auth.Malformed)
	}
}

func TestJWT_KeyOutsideDates(t *testing.T) {
	for _, x := range []struct{ from, to time.Time }{{now().Add(time.Second), time.Time{}}, {time.Time{}, now().Add(-time.Second)}} {
		b := newBench(t)
		k := b.writeKey("old", testKeys().hs256)
		k.NotBefore, k.NotAfter = x.from, x.to
		b.addJWT("ci", nil, k)
		if r := newRefusal(t, b.compile(), bearerDelivery(signHS256(t, validClaims())), auth.Wrong); r.Key != "old" || r.Caller != "ci" {
			t.Errorf("refusal %+v", r)
		}
	}
}

func TestJWT_NumberAndBoolClaims(t *testing.T) {
	for _, x := range []struct {
		rule any
		good string
		bad  []string
	}{
		{7, "7", []string{"7.0", "07", "-7", `"7"`}},
		{int64(-7), "-7", []string{"7", "-7.0"}},
		{uint64(18446744073709551615), "18446744073709551615", []string{"18446744073709551616", "1.8446744073709551615e19"}},
		{1.5, "1.5", []string{"1.6", "1", `"1.5"`, "1e999"}},
		{false, "false", []string{"true", "0", "null", `"false"`}},
		{"", `""`, []string{"null", "0", "false"}},
	} {
		b := newBench(t)
		b.addJWT("ci", func(s *auth.JWTSpec) { s.Claims = map[string]any{"x": x.rule} }, b.writeKey("", testKeys().hs256))
		c := b.compile()
		send := func(v string) *auth.Delivery {
			text := strings.TrimSuffix(encodePayload(t, validClaims()), "}") + `,"x":` + v + "}"
			return bearerDelivery(rawToken(`{"alg":"HS256"}`, text, testKeys().hs256))
		}
		wantCaller(t, c, send(x.good), "ci")
		for _, v := range x.bad {
			if id, err := c.Authenticate(send(v), nil); err == nil {
				t.Errorf("the rule %v took %s as %s", x.rule, v, id.Caller)
			}
		}
	}
}
