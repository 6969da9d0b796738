package auth_test

import (
	"net/http"
	"strings"
	"testing"

	"sallyport/auth/webhook"
)

// FuzzSignatureHeader sends any header to every preset at once. An accepted header must have a signature that only the
// key can make.
func FuzzSignatureHeader(f *testing.F) {
	b := newBench(f)
	good := map[string]string{} // what a sender's header holds for the fuzzed body
	const body = `{"id":"1","webhookTimestamp":1800000000000}`
	for _, name := range webhook.Presets() {
		p := newPair(name, "fuzz")
		b.addHMAC(name, name, p.verify)
		h := signedAt(f, name, p.sign, body, "msg_1", now())
		s, _ := webhook.Preset(name)
		value := h.Get(s.Spec().Header)
		good[name] = value[strings.LastIndexAny(strings.TrimRight(value, "="), ",=")+1:]
		f.Add(value, "1800000000", "msg_1", body)
	}
	f.Add("v1,", "", "", "")
	f.Add("t=1,t=2,v1=00", "+1", "a.b", "{}")
	c := b.compile()
	f.Fuzz(func(t *testing.T, value, ts, id, body string) {
		for _, name := range webhook.Presets() {
			s, _ := webhook.Preset(name)
			spec := s.Spec()
			h := http.Header{spec.Header: {value}, "Content-Type": {"application/json"}}
			if field := tsHeader(spec); field != nil {
				h[*field] = []string{ts}
			}
			if field := idHeader(spec); field != nil {
				h[*field] = []string{id}
			}
			got, err := c.Authenticate(delivery(body, h), []string{name})
			if err == nil && !strings.Contains(strings.ToLower(value), strings.ToLower(good[got.Caller])) {
				t.Errorf("%s took %q", got.Caller, value)
			}
		}
	})
}

// FuzzJWT sends any bearer value. Only the token that was signed may be accepted.
func FuzzJWT(f *testing.F) {
	c := newHS256Callers(f)
	good := signHS256(f, validClaims())
	f.Add(good)
	f.Add(good + ".")
	f.Add(good[:len(good)-1])
	f.Add("..")
	f.Add(rawToken(`{"alg":"none"}`, `{}`, "x"))
	f.Add(rawToken(`{"alg":"HS256","alg":"none"}`, `{"iss":"`+issuer+`"}`, testKeys().hs256))
	f.Fuzz(func(t *testing.T, raw string) {
		if id, err := c.Authenticate(bearerDelivery(raw), nil); err == nil && raw != good {
			t.Errorf("accepted %q as %s", raw, id.Caller)
		}
	})
}

// FuzzMessageSignature sends any values in the fields of a message signature. An accepted message must be the signed
// one, with any label.
func FuzzMessageSignature(f *testing.F) {
	c, sign := signatureCallers(f, nil)
	good := signRequest(f, sign[hmacID], newRequest("POST", "/start?x=1", "{}"), "", "")
	replay := wantCaller(f, c, good, "sender").Replay
	fields := []string{"Signature-Input", "Signature", "Content-Digest"}
	f.Add(good.Header.Get(fields[0]), good.Header.Get(fields[1]), good.Header.Get(fields[2]), "{}")
	f.Add("sig=(1);created=1800000000;keyid=\"secret\"", "sig=::", "sha-256", "")
	f.Add("a=(\"@query-param\";name=\"x\");created", "a, b=?1", "sha-512=:AA==:;q=1", "[]")
	f.Fuzz(func(t *testing.T, input, signature, digest, body string) {
		d := newRequest("POST", "/start?x=1", body)
		for i, value := range []string{input, signature, digest} {
			d.Header.Set(fields[i], value)
		}
		if who, err := c.Authenticate(d, []string{"sender"}); err == nil && (who.Replay != replay || body != "{}") {
			t.Errorf("accepted as %v", who)
		}
	})
}
