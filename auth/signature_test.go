package auth_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"net/url"
	"strings"
	"testing"
	"time"

	"sallyport/auth"
	"sallyport/auth/httpsig"
)

const (
	hmacID    = "secret"
	ed25519ID = "ed25519"
	p256ID    = "p256"
)

// senderKeys makes a key of each kind, and returns the settings of the caller and the signing keys.
func senderKeys(b *bench) (specs []auth.KeySpec, sign map[string]*httpsig.SigningKey) {
	b.Helper()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	texts := map[string][2]string{hmacID: {secretA, secretA}}
	for id, private := range map[string]crypto.Signer{ed25519ID: ed25519.NewKeyFromSeed(make([]byte, 32)), p256ID: ec} {
		der, err := x509.MarshalPKCS8PrivateKey(private)
		if err != nil {
			b.Fatal(err)
		}
		texts[id] = [2]string{publicPEM(b, private), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))}
	}
	sign = map[string]*httpsig.SigningKey{}
	for id, text := range texts {
		specs = append(specs, b.writeKey(id, text[0]))
		if sign[id], err = httpsig.NewSigningKey(id, []byte(text[1])); err != nil {
			b.Fatal(err)
		}
	}
	return specs, sign
}

// signatureCallers has one caller with message signatures, "sender".
func signatureCallers(t testing.TB, change func(*auth.SignatureSpec)) (*auth.Callers, map[string]*httpsig.SigningKey) {
	t.Helper()
	b := newBench(t)
	specs, sign := senderKeys(b)
	spec := &auth.SignatureSpec{Authority: []string{"hooks.example.com", "localhost:8443"}, Keys: specs}
	if change != nil {
		change(spec)
	}
	b.caller("sender").Signature = spec
	// A valid token of another caller must not make up for a wrong signature.
	b.addToken("weak", "X-Weak", secretC)
	return b.compile(), sign
}

// newRequest returns a request as the server receives it, without a signature.
func newRequest(method, target, body string) *auth.Delivery {
	path, query, _ := strings.Cut(target, "?")
	return &auth.Delivery{
		Method: method, Authority: "hooks.example.com", URL: &url.URL{Path: path, RawQuery: query}, Body: []byte(body), Now: now(),
		Header: headers("Content-Type", "application/json", "X-Weak", secretC, "X-Kind", "full"),
	}
}

func signRequest(t testing.TB, key *httpsig.SigningKey, d *auth.Delivery, nonce, tag string) *auth.Delivery {
	t.Helper()
	r := &httpsig.Request{Method: d.Method, Authority: d.Authority, URL: d.URL, Header: d.Header, Body: d.Body}
	h, err := key.Sign(r, d.Now, nonce, tag)
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range h {
		d.Header[name] = values
	}
	return d
}

func TestSignature_Tampering(t *testing.T) {
	c, sign := signatureCallers(t, nil)
	_, stranger := signatureCallers(t, nil)
	for id, key := range sign {
		fresh := func() *auth.Delivery { return signRequest(t, key, newRequest("POST", "/start?x=1", "{}"), "n1", "") }
		who := wantCaller(t, c, fresh(), "sender")
		if who.Kind != "signature" || who.Key != id || who.Replay == "" || !who.Until.Equal(now().Add(72*time.Hour)) {
			t.Errorf("%s: identity %+v", id, who)
		}
		for why, change := range map[string]func(*auth.Delivery){
			"another method":         func(d *auth.Delivery) { d.Method = "PUT" },
			"another path":           func(d *auth.Delivery) { d.URL.Path = "/stop" },
			"another spelling":       func(d *auth.Delivery) { d.URL.RawPath = "/st%61rt" },
			"another query":          func(d *auth.Delivery) { d.URL.RawQuery = "x=2" },
			"more query":             func(d *auth.Delivery) { d.URL.RawQuery += "&y=1" },
			"no query":               func(d *auth.Delivery) { d.URL.RawQuery = "" },
			"another authority":      func(d *auth.Delivery) { d.Authority = "localhost:8443" },
			"another port":           func(d *auth.Delivery) { d.Authority += ":8443" },
			"another content type":   func(d *auth.Delivery) { d.Header.Set("Content-Type", "application/x-www-form-urlencoded") },
			"no content type":        func(d *auth.Delivery) { d.Header.Del("Content-Type") },
			"two content types":      func(d *auth.Delivery) { d.Header.Add("Content-Type", "application/json") },
			"another body":           func(d *auth.Delivery) { d.Body = []byte("{ }") },
			"no body":                func(d *auth.Delivery) { d.Body = nil },
			"body and digest":        func(d *auth.Delivery) { d.Body = nil; d.Header.Del("Content-Digest") },
			"another body's digest":  func(d *auth.Delivery) { d.Body = []byte("[]"); d.Header.Set("Content-Digest", digestOf("[]")) },
			"no Signature":           func(d *auth.Delivery) { d.Header.Del("Signature") },
			"Signature twice":        func(d *auth.Delivery) { d.Header.Add("Signature", d.Header.Get("Signature")) },
			"Signature-Input twice":  func(d *auth.Delivery) { d.Header.Add("Signature-Input", d.Header.Get("Signature-Input")) },
			"a stranger's signature": func(d *auth.Delivery) { signRequest(t, stranger[p256ID], d, "n1", "") },
			"another time":           editHeader("Signature-Input", "created=1800000000", "created=1800000001"),
			"another nonce":          editHeader("Signature-Input", `nonce="n1"`, `nonce="n2"`),
			"another key":            editHeader("Signature-Input", `keyid="`+id+`"`, `keyid="nobody's"`),
			"a changed character":    func(d *auth.Delivery) { d.Header.Set("Signature", changeCharacter(d.Header.Get("Signature"), 20)) },
			"cut short":              func(d *auth.Delivery) { d.Header.Set("Signature", "sig=:AAAA:") },
			"empty":                  func(d *auth.Delivery) { d.Header.Set("Signature", "sig=::") },
		} {
			if why == "a stranger's signature" && id == hmacID {
				continue // the stranger has that secret too
			}
			d := fresh()
			change(d)
			if who, err := c.Authenticate(d, []string{"sender", "weak"}); err == nil {
				t.Errorf("%s, %s: accepted as %s", id, why, who.Caller)
			}
		}
		wantCaller(t, c, signRequest(t, key, newRequest("DELETE", "/runs/1", ""), "n1", ""), "sender")
	}
}

func editHeader(header, old, text string) func(*auth.Delivery) {
	return func(d *auth.Delivery) { d.Header.Set(header, strings.Replace(d.Header.Get(header), old, text, 1)) }
}

func digestOf(body string) string {
	sum := sha256.Sum256([]byte(body))
	return "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"
}

// byHand signs with the secret: input is the Signature-Input to send, and lines are the lines of its components. If
// signed is empty, input is signed.
type byHand struct{ input, signed, lines string }

const (
	whole      = `("@method" "@target-uri" "content-type" "content-digest")`
	fresh      = `;created=1800000000;keyid="secret"`
	wholeLines = "\"@method\": POST\n\"@target-uri\": https://hooks.example.com/start?x=1\n\"content-type\": application/json\n\"content-digest\": DIGEST\n"
)

func (x byHand) delivery() *auth.Delivery {
	d := newRequest("POST", "/start?x=1", "{}")
	d.Header.Set("Content-Digest", digestOf("{}"))
	d.Header.Set("Signature-Input", "sig="+x.input)
	if x.signed == "" {
		x.signed = x.input
	}
	mac := hmac.New(sha256.New, []byte(secretA))
	_, _ = mac.Write([]byte(strings.Replace(x.lines, "DIGEST", digestOf("{}"), 1) + `"@signature-params": ` + x.signed))
	d.Header.Set("Signature", "sig=:"+base64.StdEncoding.EncodeToString(mac.Sum(nil))+":")
	return d
}

func TestSignature_Coverage(t *testing.T) {
	c, _ := signatureCallers(t, nil)
	const method, typed, digest = "\"@method\": POST\n", "\"content-type\": application/json\n", "\"content-digest\": DIGEST\n"
	const target, authority = "\"@target-uri\": https://hooks.example.com/start?x=1\n", "\"@authority\": hooks.example.com\n"
	const path, query = "\"@path\": /start\n", "\"@query\": ?x=1\n"
	for why, x := range map[string]byHand{
		"the target whole":    {input: whole + fresh, lines: wholeLines},
		"the target in parts": {input: `("@query" "@path" "@authority" "@method" "content-type" "content-digest")` + fresh, lines: query + path + authority + method + typed + digest},
		"with more": {
			input: `("@scheme" "@request-target" "x-kind" "@method" "@target-uri" "content-type" "content-digest")` + fresh,
			lines: "\"@scheme\": https\n\"@request-target\": /start?x=1\n\"x-kind\": full\n" + method + target + typed + digest,
		},
		"every parameter":               {input: whole + `;expires=1800000010` + fresh + `;alg="hmac-sha256";nonce="n"`, lines: wholeLines},
		"no nonce, as old as it may be": {input: whole + `;created=1799999700;keyid="secret"`, lines: wholeLines},
		"a clock that is ahead":         {input: whole + `;created=1800000030;keyid="secret"`, lines: wholeLines},
	} {
		if _, err := c.Authenticate(x.delivery(), nil); err != nil {
			t.Errorf("%s: %v", why, err)
		}
	}
	for why, x := range map[string]struct {
		byHand
		reason auth.Reason
	}{
		"no method":         {byHand{input: `("@target-uri" "content-type" "content-digest")` + fresh, lines: target + typed + digest}, auth.Wrong},
		"no target":         {byHand{input: `("@method" "content-type" "content-digest")` + fresh, lines: method + typed + digest}, auth.Wrong},
		"no authority":      {byHand{input: `("@method" "@path" "@query" "content-type" "content-digest")` + fresh, lines: method + path + query + typed + digest}, auth.Wrong},
		"no path":           {byHand{input: `("@method" "@authority" "@query" "content-type" "content-digest")` + fresh, lines: method + authority + query + typed + digest}, auth.Wrong},
		"no query":          {byHand{input: `("@method" "@authority" "@path" "content-type" "content-digest")` + fresh, lines: method + authority + path + typed + digest}, auth.Wrong},
		"no content type":   {byHand{input: `("@method" "@target-uri" "content-digest")` + fresh, lines: method + target + digest}, auth.Wrong},
		"no digest":         {byHand{input: `("@method" "@target-uri" "content-type")` + fresh, lines: method + target + typed}, auth.Wrong},
		"nothing":           {byHand{input: `()` + fresh}, auth.Wrong},
		"no time":           {byHand{input: whole + `;keyid="secret"`, lines: wholeLines}, auth.Malformed},
		"no key id":         {byHand{input: whole + `;created=1800000000`, lines: wholeLines}, auth.Malformed},
		"too old":           {byHand{input: whole + `;created=1799999699;keyid="secret"`, lines: wholeLines}, auth.Stale},
		"in the future":     {byHand{input: whole + `;created=1800000031;keyid="secret"`, lines: wholeLines}, auth.Stale},
		"293 years ahead":   {byHand{input: whole + `;created=11046585600;keyid="secret"`, lines: wholeLines}, auth.Stale},
		"in milliseconds":   {byHand{input: whole + `;created=1800000000000;keyid="secret"`, lines: wholeLines}, auth.Malformed},
		"before the epoch":  {byHand{input: whole + `;created=-9223372036;keyid="secret"`, lines: wholeLines}, auth.Malformed},
		"expires in millis": {byHand{input: whole + `;expires=1800000010000` + fresh, lines: wholeLines}, auth.Malformed},
		"expired":           {byHand{input: whole + `;expires=1799999999` + fresh, lines: wholeLines}, auth.Stale},
		"alg of another":    {byHand{input: whole + fresh + `;alg="ed25519"`, lines: wholeLines}, auth.Wrong},
		"a tag":             {byHand{input: whole + fresh + `;tag="app"`, lines: wholeLines}, auth.Wrong},
		"unknown parameter": {byHand{input: whole + fresh + `;context="x"`, lines: wholeLines}, auth.Malformed},
		"time twice":        {byHand{input: whole + `;created=1` + fresh, signed: whole + fresh, lines: wholeLines}, auth.Malformed},
		"time twice, the last signed": {
			byHand{input: whole + `;created=1;created=1800000000;keyid="secret"`, signed: whole + fresh, lines: wholeLines}, auth.Malformed,
		},
		"time as text":           {byHand{input: whole + `;created="1800000000";keyid="secret"`, lines: wholeLines}, auth.Malformed},
		"time as decimal":        {byHand{input: whole + `;created=1800000000.0;keyid="secret"`, lines: wholeLines}, auth.Malformed},
		"time as date":           {byHand{input: whole + `;created=@1800000000;keyid="secret"`, lines: wholeLines}, auth.Malformed},
		"time without a value":   {byHand{input: whole + `;created;keyid="secret"`, lines: wholeLines}, auth.Malformed},
		"key id as token":        {byHand{input: whole + `;created=1800000000;keyid=a`, lines: wholeLines}, auth.Malformed},
		"key id as bytes":        {byHand{input: whole + `;created=1800000000;keyid=:YQ==:`, lines: wholeLines}, auth.Malformed},
		"white space":            {byHand{input: whole + `; created=1800000000;keyid="secret"`, signed: whole + fresh, lines: wholeLines}, auth.Malformed},
		"two spaces":             {byHand{input: strings.Replace(whole, " ", "  ", 1) + fresh, signed: whole + fresh, lines: wholeLines}, auth.Malformed},
		"two signatures":         {byHand{input: whole + fresh + `, other=` + whole + fresh, signed: whole + fresh, lines: wholeLines}, auth.Malformed},
		"the same label twice":   {byHand{input: whole + fresh + `, sig=` + whole + fresh, signed: whole + fresh, lines: wholeLines}, auth.Malformed},
		"no list":                {byHand{input: `"@method"` + fresh, lines: wholeLines}, auth.Malformed},
		"an integer":             {byHand{input: `(1)` + fresh}, auth.Malformed},
		"a token":                {byHand{input: `(a)` + fresh}, auth.Malformed},
		"upper case":             {byHand{input: `("@METHOD" "@target-uri" "content-type" "content-digest")` + fresh, lines: wholeLines}, auth.Malformed},
		"a header in caps":       {byHand{input: `("@method" "@target-uri" "Content-Type" "content-digest")` + fresh, lines: wholeLines}, auth.Malformed},
		"the same twice":         {byHand{input: `("@method" "@method" "@target-uri" "content-type" "content-digest")` + fresh, lines: method + wholeLines}, auth.Malformed},
		"what is not there":      {byHand{input: `("@method" "@target-uri" "content-type" "content-digest" "x-none")` + fresh, lines: wholeLines + "\"x-none\": \n"}, auth.Malformed},
		"an unknown component":   {byHand{input: `("@method" "@target-uri" "content-type" "content-digest" "@status")` + fresh, lines: wholeLines}, auth.Malformed},
		"its own parameters":     {byHand{input: `("@method" "@target-uri" "content-type" "content-digest" "@signature-params")` + fresh, lines: wholeLines}, auth.Malformed},
		"a parameter in a name":  {byHand{input: `("@method" "@target-uri" "content-type" "content-digest";sf)` + fresh, lines: wholeLines}, auth.Malformed},
		"of the request":         {byHand{input: `("@method";req "@target-uri" "content-type" "content-digest")` + fresh, lines: wholeLines}, auth.Malformed},
		"a query parameter":      {byHand{input: `("@method" "@path" "@authority" "@query-param";name="x" "content-type" "content-digest")` + fresh}, auth.Malformed},
		"a line in a name":       {byHand{input: `("@method" "@target-uri" "content-type" "content-digest" "x: \"")` + fresh}, auth.Malformed},
		"not a structured field": {byHand{input: `((((((`}, auth.Malformed},
	} {
		r := newRefusal(t, c, x.delivery(), x.reason, "sender")
		if r.Kind != "signature" || (r.Caller != "") != (x.reason == auth.Stale || strings.Contains(r.Detail, "cover") || strings.Contains(r.Detail, "tag")) && x.reason != auth.Malformed {
			t.Errorf("%s: %+v", why, r)
		}
	}
}

func TestSignature_ContentDigest(t *testing.T) {
	c, _ := signatureCallers(t, nil)
	sum := sha512.Sum512([]byte("{}"))
	long := "sha-512=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"
	other := sha512.Sum512([]byte("[]"))
	try := func(value string) error {
		x := byHand{input: whole + fresh, lines: strings.Replace(wholeLines, "DIGEST", value, 1)}
		d := x.delivery()
		d.Header.Set("Content-Digest", value)
		_, err := c.Authenticate(d, nil)
		return err
	}
	for _, value := range []string{digestOf("{}"), long, digestOf("{}") + ", " + long, "md5=:AAAA:, " + long} {
		if err := try(value); err != nil {
			t.Errorf("%s: %v", value, err)
		}
	}
	for why, value := range map[string]string{
		"another body's":           digestOf("[]"),
		"one of two another's":     digestOf("{}") + ", sha-512=:" + base64.StdEncoding.EncodeToString(other[:]) + ":",
		"only a broken hash":       "md5=:AAAA:",
		"cut short":                "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:16]) + ":",
		"empty":                    "",
		"no bytes":                 `sha-256="x"`,
		"a list":                   "sha-256=()",
		"twice, the last is right": "sha-256=:AAAA:, " + digestOf("{}"),
		"in hex":                   "sha-256=" + strings.Repeat("0", 64),
		"another hash's length":    strings.Replace(digestOf("{}"), "sha-256", "sha-512", 1),
	} {
		if err := try(value); err == nil {
			t.Errorf("%s: accepted", why)
		}
	}
}

func TestSignature_AuthorityAndTag(t *testing.T) {
	c, sign := signatureCallers(t, func(s *auth.SignatureSpec) {
		s.Tag, s.Components, s.MaxAge = "deploy", []string{"x-kind"}, time.Minute
	})
	key := sign[ed25519ID]
	// The signer of this package cannot cover other headers, so this signature is made by hand.
	covered := strings.Replace(whole, `("`, `("x-kind" "`, 1) + fresh
	wantCaller(t, c, byHand{input: covered + `;tag="deploy"`, lines: "\"x-kind\": full\n" + wholeLines}.delivery(), "sender")
	for _, x := range []byHand{
		{input: covered, lines: "\"x-kind\": full\n" + wholeLines},
		{input: covered + `;tag="Deploy"`, lines: "\"x-kind\": full\n" + wholeLines},
		{input: whole + fresh + `;tag="deploy"`, lines: wholeLines},
		{input: strings.Replace(covered, "1800000000", "1799999939", 1) + `;tag="deploy"`, lines: "\"x-kind\": full\n" + wholeLines},
	} {
		if _, err := c.Authenticate(x.delivery(), nil); err == nil {
			t.Errorf("accepted %s", x.input)
		}
	}
	newRefusal(t, c, signRequest(t, key, newRequest("POST", "/start", "{}"), "", "deploy"), auth.Wrong)

	c, sign = signatureCallers(t, nil)
	for authority, ok := range map[string]bool{
		"hooks.example.com": true, "HOOKS.example.com:443": true, "localhost:8443": true,
		"staging.example.com": false, "hooks.example.com:8443": false, "localhost": false, "": false, "hooks.example.com.": false,
	} {
		d := newRequest("GET", "/runs", "")
		d.Authority = authority
		if _, err := c.Authenticate(signRequest(t, sign[p256ID], d, "", ""), nil); (err == nil) != ok {
			t.Errorf("for %q: %v", authority, err)
		}
	}
}

func TestSignature_ReplayNames(t *testing.T) {
	c, sign := signatureCallers(t, nil)
	key := sign[p256ID] // its signatures differ each time
	replay := func(nonce, target string, ago time.Duration) string {
		t.Helper()
		d := newRequest("POST", target, "{}")
		d.Now = now().Add(-ago)
		signRequest(t, key, d, nonce, "")
		d.Now = now()
		return wantCaller(t, c, d, "sender").Replay
	}
	if replay("n", "/start", 0) != replay("n", "/start", time.Minute) {
		t.Error("a retry with the same nonce is another delivery")
	}
	if replay("n", "/start", 0) == replay("m", "/start", 0) {
		t.Error("another nonce is the same delivery")
	}
	first, again := replay("", "/start", 0), replay("", "/start", 0)
	if first != again {
		t.Error("the same without a nonce is another delivery")
	}
	if replay("", "/start", 0) == replay("", "/start", time.Second) || replay("", "/start", 0) == replay("", "/stop", 0) {
		t.Error("without a nonce, another time or target is the same delivery")
	}
}

func TestSignatureKey_OneAlgorithm(t *testing.T) {
	b := newBench(t)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key := func(id, text, alg string) auth.KeySpec {
		k := b.writeKey(id, text)
		k.Alg = alg
		return k
	}
	b.caller("sender").Signature = &auth.SignatureSpec{Keys: []auth.KeySpec{
		key("rsa", publicPEM(t, rsaKey), ""), key("p384", publicPEM(t, p384), ""), key("short", "short", ""),
		key("swapped", secretA, "ed25519"), key("", secretB, ""), key("ok", secretC, "hmac-sha256"),
	}, Authority: []string{"https://hooks.example.com"}, Components: []string{"X-Kind", "@status"}, Tag: "a b", MaxAge: 25 * time.Hour}
	b.wantProblem("keys.0", "not an Ed25519 or P-256 key")
	b.wantProblem("keys.1", "not an Ed25519 or P-256 key")
	b.wantProblem("keys.2", "must have at least 16")
	b.wantProblem("keys.3.alg", `is "ed25519", but this is a key for hmac-sha256`)
	b.wantProblem("keys.4", "needs an id")
	b.wantProblem("authority.0", "not a host or host:port")
	b.wantProblem("components.0", "neither a header in lower case")
	b.wantProblem("components.1", "nor one of @method")
	b.wantProblem("tag", "printable ASCII")
	b.wantProblem("max_age", "not between")
	b.specs["sender"].Signature = &auth.SignatureSpec{}
	b.wantProblem("authority", "is missing")
	b.wantProblem("keys", "needs at least one key")
}

func TestKey_DatesOfEveryKind(t *testing.T) {
	for why, dates := range map[string]func(*auth.KeySpec){
		"":                            func(k *auth.KeySpec) { k.NotBefore, k.NotAfter = now(), now().Add(time.Second) },
		"not_before is in the future": func(k *auth.KeySpec) { k.NotBefore = now().Add(time.Second) },
		"not_after has passed":        func(k *auth.KeySpec) { k.NotAfter = now().Add(-time.Second) },
	} {
		b := newBench(t)
		specs, sign := senderKeys(b)
		for i := range specs {
			dates(&specs[i])
		}
		dated := func(text string) []auth.KeySpec {
			k := b.writeKey("1", text)
			dates(&k)
			return []auth.KeySpec{k}
		}
		b.caller("signature").Signature = &auth.SignatureSpec{Authority: []string{"hooks.example.com"}, Keys: specs}
		b.caller("hmac").HMAC = &auth.HMACSpec{Scheme: "github", Keys: dated(secretA)}
		b.caller("token").Token = &auth.TokenSpec{Header: "X-Token", Keys: dated(secretB)}
		b.caller("jwt").JWT = &auth.JWTSpec{Issuer: issuer, Audience: audience, Keys: dated(testKeys().hs256)}
		c := b.compile()
		for caller, d := range map[string]*auth.Delivery{
			"signature": signRequest(t, sign[p256ID], newRequest("GET", "/runs", ""), "", ""),
			"hmac":      delivery("{}", signed(t, "github", secretA, "{}")),
			"token":     delivery("{}", headers("X-Token", secretB)),
			"jwt":       bearerDelivery(signHS256(t, validClaims())),
		} {
			if why == "" {
				wantCaller(t, c, d, caller)
			} else if r := newRefusal(t, c, d, auth.Wrong); r.Caller != caller || !strings.Contains(r.Detail, why) {
				t.Errorf("%s: %+v", caller, r)
			}
		}
	}
}
