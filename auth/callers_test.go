package auth_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"sallyport/auth"
	"sallyport/auth/webhook"
)

func TestAuthenticate_NoCredential(t *testing.T) {
	b := newAuthority(t).trusted()
	b.addHMAC("github", "github", secretA)
	b.addToken("gitlab", "X-Gitlab-Token", secretB)
	b.addJWT("ci", nil, b.writeKey("", testKeys().hs256))
	b.caller("etl").MTLS = &auth.MTLSSpec{CN: "etl"}
	c := b.compile()
	if got := c.Names(); !slices.Equal(got, []string{"ci", "etl", "github", "gitlab"}) {
		t.Errorf("names %v", got)
	}
	newRefusal(t, c, delivery("{}", http.Header{}), auth.Absent)
	newRefusal(t, c, delivery("{}", headers("X-Other", "x", "X-Gitea-Signature", "00")), auth.Absent)
	newRefusal(t, auth.Compile(nil, auth.Sources{}, nil), delivery("{}", headers("Authorization", "Bearer x")), auth.Absent)
}

// TestAuthenticate_StrongestKindDecides: a correct credential of a weaker kind does not make up for a wrong one of a
// stronger kind.
func TestAuthenticate_StrongestKindDecides(t *testing.T) {
	b := newBench(t)
	b.addHMAC("gitlab", "gitlab", newPair("gitlab", "a").verify)
	b.addToken("gitlab", "X-Gitlab-Token", secretB) // of the same caller
	b.addToken("other", "X-Other-Token", secretC)
	b.addJWT("ci", nil, b.writeKey("", testKeys().hs256))
	c := b.compile()
	good := signed(t, "gitlab", newPair("gitlab", "a").sign, "{}")
	bad := signed(t, "gitlab", newPair("gitlab", "b").sign, "{}")
	right := signHS256(t, validClaims())
	wrong := signToken(t, jwt.SigningMethodHS256, []byte("x"), validClaims())
	both := func(h http.Header, pairs ...string) *auth.Delivery {
		h = h.Clone()
		for i := 0; i < len(pairs); i += 2 {
			h.Set(pairs[i], pairs[i+1])
		}
		return delivery("{}", h)
	}
	none := http.Header{}
	wantCaller(t, c, both(none, "X-Gitlab-Token", secretB), "gitlab")
	wantCaller(t, c, both(good, "X-Gitlab-Token", "wrong"), "gitlab")
	newRefusal(t, c, both(bad, "X-Gitlab-Token", secretB), auth.Wrong, "gitlab")
	newRefusal(t, c, both(bad, "X-Other-Token", secretC), auth.Wrong, "other")
	newRefusal(t, c, both(bad, "Authorization", "Bearer "+right), auth.Wrong, "ci")
	newRefusal(t, c, both(headers("Webhook-Signature", ""), "X-Gitlab-Token", secretB), auth.Malformed, "gitlab")
	newRefusal(t, c, both(headers("Webhook-Signature", good.Get("Webhook-Signature")), "X-Gitlab-Token", secretB), auth.Malformed, "gitlab")
	newRefusal(t, c, both(none, "Authorization", "Bearer "+wrong, "X-Other-Token", secretC), auth.Wrong, "other")
	newRefusal(t, c, both(none, "Authorization", "Bearer nothing", "X-Other-Token", secretC), auth.Malformed, "other")
	wantCaller(t, c, both(none, "Authorization", "Bearer "+right, "X-Other-Token", "wrong"), "ci")
}

// TestHMAC_SeveralSchemes: Gitea also sends the headers of GitHub and Gogs.
func TestHMAC_SeveralSchemes(t *testing.T) {
	b := newBench(t)
	b.addHMAC("github", "github", secretA)
	b.addHMAC("gitea", "gitea", secretB)
	b.addHMAC("bitbucket", "bitbucket", secretC)
	c := b.compile()
	h := signed(t, "gitea", secretB, "{}")
	h.Set("X-Hub-Signature-256", signed(t, "github", secretB, "{}").Get("X-Hub-Signature-256"))
	h.Set("X-Hub-Signature", "sha1=01dc10d0c83e72ed246219cdd91669667fe2ca59")
	wantCaller(t, c, delivery("{}", h), "gitea", "github", "gitea")
	wantCaller(t, c, delivery("{}", h), "gitea", "github")
	h = signed(t, "github", secretA, "{}")
	h.Set("X-Hub-Signature", "sha1=01dc10d0c83e72ed246219cdd91669667fe2ca59")
	wantCaller(t, c, delivery("{}", h), "github", "bitbucket")
	h.Set("X-Hub-Signature-256", signed(t, "github", secretC, "{}").Get("X-Hub-Signature-256"))
	newRefusal(t, c, delivery("{}", h), auth.Wrong, "bitbucket")
}

func TestAuthenticate_OtherHooksCaller(t *testing.T) {
	b := newBench(t)
	b.addHMAC("a", "github", secretA)
	b.addHMAC("b", "github", secretB)
	c := b.compile()
	wantCaller(t, c, delivery("{}", signed(t, "github", secretB, "{}")), "b", "a", "gone")
	// The same key twice: the hook decides, and compiling has warned.
	b.addHMAC("b", "github", secretA)
	b.wantProblem("warning callers.b.hmac.keys", `caller "a"`)
	c = b.compile()
	wantCaller(t, c, delivery("{}", signed(t, "github", secretA, "{}")), "b", "b")
	wantCaller(t, c, delivery("{}", signed(t, "github", secretA, "{}")), "a", "a")
}

func TestHMAC_ForeignSearchBounded(t *testing.T) {
	b := newBench(t)
	b.addHMAC("mine", "github", secretA)
	b.addHMAC("stranger", "github", secretB)
	c := b.compile()
	small, large := "{}", strings.Repeat("x", 65<<20)
	wantCaller(t, c, delivery(small, signed(t, "github", secretB, small)), "stranger", "mine")
	wantCaller(t, c, delivery(large, signed(t, "github", secretA, large)), "mine", "mine")
	newRefusal(t, c, delivery(large, signed(t, "github", secretB, large)), auth.Wrong, "mine")
}

func TestHMAC_KeyRotation(t *testing.T) {
	b := newBench(t)
	b.addHMAC("github", "github", secretA, secretB)
	keys := b.specs["github"].HMAC.Keys
	keys[0].NotAfter, keys[1].NotBefore = now().Add(time.Hour), now().Add(-time.Hour)
	c := b.compile()
	for i, secret := range []string{secretA, secretB} {
		d := delivery("{}", signed(t, "github", secret, "{}"))
		if id := wantCaller(t, c, d, "github"); id.Key != keys[i].ID {
			t.Errorf("key %s, want %s", id.Key, keys[i].ID)
		}
		d.Now = now().Add([]time.Duration{time.Hour + 1, -time.Hour - 1}[i])
		if r := newRefusal(t, c, d, auth.Wrong); r.Key != keys[i].ID {
			t.Errorf("refusal %+v", r)
		}
	}
}

func TestReplay_NamesWhatWasSigned(t *testing.T) {
	b := newBench(t)
	b.addHMAC("stripe", "stripe", secretA, secretB)
	b.addHMAC("svix", "svix", newPair("svix", "s").verify)
	b.addHMAC("github", "github", secretC)
	c := b.compile()

	// Two signatures while a secret is rotated: without one of them, it is the same delivery.
	body := `{"type":"x"}`
	one, two := signed(t, "stripe", secretA, body), signed(t, "stripe", secretB, body)
	a, again := wantCaller(t, c, delivery(body, one), "stripe"), wantCaller(t, c, delivery(body, two), "stripe")
	if a.Replay != again.Replay || a.Key == again.Key {
		t.Error("another signature of the same message passes for another delivery")
	}
	if a.Event != "x" || !a.Until.Equal(now().Add(24*time.Hour)) || a.OneBody || a.Named {
		t.Errorf("identity %+v", a)
	}
	later := wantCaller(t, c, delivery(body, signedAt(t, "stripe", secretA, body, "", now().Add(time.Second))), "stripe")
	if later.Replay == a.Replay {
		t.Error("a second delivery without an id passes for the first")
	}

	// A signed id names the delivery: a retry has the same id and a new signature.
	key := newPair("svix", "s").sign
	first := wantCaller(t, c, delivery("{}", signedAt(t, "svix", key, "{}", "m1", now())), "svix")
	retry := wantCaller(t, c, delivery("{}", signedAt(t, "svix", key, "{}", "m1", now().Add(time.Minute))), "svix")
	other := wantCaller(t, c, delivery("{}", signedAt(t, "svix", key, "{}", "m2", now())), "svix")
	if first.Replay != retry.Replay || first.Replay == other.Replay {
		t.Error("the id does not name the delivery")
	}
	if !first.Until.Equal(now().Add(72*time.Hour)) || !first.Named {
		t.Errorf("until %s", first.Until)
	}

	// An id that is not signed is free to change, and changes nothing.
	h := signed(t, "github", secretC, "{}")
	h.Set("X-GitHub-Delivery", "1")
	g := wantCaller(t, c, delivery("{}", h), "github")
	h.Set("X-GitHub-Delivery", "2")
	if wantCaller(t, c, delivery("{}", h), "github").Replay != g.Replay || !g.Until.IsZero() {
		t.Error("an unsigned id makes a new delivery")
	}
}

func TestReplay_OptionOfCaller(t *testing.T) {
	b := newBench(t)
	b.addHMAC("h", "github", secretA)
	b.addToken("t", "X-Token", secretB)
	send := func() (string, string) {
		c := b.compile()
		hmac := wantCaller(t, c, delivery("{}", signed(t, "github", secretA, "{}")), "h").Replay
		return hmac, wantCaller(t, c, delivery("{}", headers("X-Token", secretB)), "t").Replay
	}
	if hmac, token := send(); hmac == "" || token != "" {
		t.Errorf("by default: %q, %q", hmac, token)
	}
	b.specs["h"].Replay, b.specs["t"].Replay = "allow", "check"
	if hmac, token := send(); hmac != "" || token == "" {
		t.Errorf("by choice: %q, %q", hmac, token)
	}
	c := b.compile()
	replay := func(body string, keys ...string) string {
		h := headers("X-Token", secretB)
		h["Idempotency-Key"] = keys
		return wantCaller(t, c, delivery(body, h), "t").Replay
	}
	if replay("a", "k") != replay("b", "k") || replay("a", "k") == replay("a", "l") {
		t.Error("one Idempotency-Key does not name the delivery")
	}
	if replay("a", "k", "l") != replay("a") || replay("a") == replay("b") || replay("a", "") != replay("a") {
		t.Error("without one, the body does not name the delivery")
	}
	b.specs["h"].Replay, b.specs["t"].Replay = "until_success", "until_success"
	c = b.compile()
	h := wantCaller(t, c, delivery("{}", signed(t, "github", secretA, "{}")), "h")
	if tok := wantCaller(t, c, delivery("{}", headers("X-Token", secretB)), "t"); !h.UntilSuccess || !tok.UntilSuccess ||
		tok.Replay == "" {
		t.Errorf("until_success is %v %v", h.UntilSuccess, tok)
	}
	b.specs["t"].Replay = "request"
	b.specs["h"].Replay = "sometimes"
	b.wantProblem("error callers.t.replay")
	b.wantProblem("error callers.h.replay")
}

func TestIdentity_Event(t *testing.T) {
	b := newBench(t)
	b.addHMAC("github", "github", secretA)
	b.addHMAC("pagerduty", "pagerduty", secretB)
	c := b.compile()
	event := func(caller, scheme, secret, body string, pairs ...string) string {
		h := signed(t, scheme, secret, body)
		for i := 0; i < len(pairs); i += 2 {
			h.Add(pairs[i], pairs[i+1])
		}
		return wantCaller(t, c, delivery(body, h), caller).Event
	}
	for want, got := range map[string]string{
		"push":             event("github", "github", secretA, "{}", "X-GitHub-Event", "push"),
		"incident.trigger": event("pagerduty", "pagerduty", secretB, `{"event":{"event_type":"incident.trigger"}}`),
		"Tag Push Hook":    event("github", "github", secretA, "{}", "X-GitHub-Event", "Tag Push Hook"),
		"":                 event("github", "github", secretA, "{}", "X-GitHub-Event", "a", "X-GitHub-Event", "b"),
	} {
		if got != want {
			t.Errorf("event %q, want %q", got, want)
		}
	}
	for _, body := range []string{"not JSON", `{"event":{"event_type":["x"]}}`, `{"event":{"event_type":"a\nb"}}`, `{"event":{"event_type":"x","event_type":"y"}}`} {
		if got := event("pagerduty", "pagerduty", secretB, body); got != "" {
			t.Errorf("%s: the event is %q", body, got)
		}
	}
}

func TestHMAC_TimestampInBody(t *testing.T) {
	b := newBench(t)
	b.addHMAC("linear", "linear", secretA)
	c := b.compile()
	for _, body := range []string{`{}`, `{"webhookTimestamp":null}`, `{"webhookTimestamp":-1}`, `{"webhookTimestamp":1.8e12}`, `{"webhookTimestamp":"soon"}`, "x", `{"webhookTimestamp":1800000000000,"webhookTimestamp":1800000000000}`} {
		newRefusal(t, c, delivery(body, signed(t, "linear", secretA, body)), auth.Malformed)
	}
}

func TestCompile_ReportsAllErrors(t *testing.T) {
	b := newBench(t)
	b.specs["none"] = nil
	b.specs["empty"] = &auth.CallerSpec{}
	b.addHMAC("short", "github", "fifteen bytes!!")
	b.addHMAC("soso", "github", "sixteen bytes!!!")
	b.addHMAC("typo", "githbu", secretA)
	b.addHMAC("mixed", "github", secretA)
	b.specs["mixed"].HMAC.Header = "X"
	b.addHMAC("keyless", "github")
	b.addHMAC("twins", "github", secretA, secretB)
	b.specs["twins"].HMAC.Keys[1].ID = "a"
	b.addHMAC("noid", "github", secretA, secretB)
	b.specs["noid"].HMAC.Keys[1].ID = ""
	b.addHMAC("dates", "github", secretA)
	b.specs["dates"].HMAC.Keys[0].NotBefore, b.specs["dates"].HMAC.Keys[0].NotAfter = now(), now()
	b.addHMAC("alg", "github", secretA)
	b.specs["alg"].HMAC.Keys[0].Alg = "HS256"
	b.addHMAC("base64", "gitlab", "whsec_!!")
	b.addHMAC("whsk", "svix", publicPair("x").sign)
	b.addHMAC("curve", "discord", strings.Repeat("ab", 31))
	b.caller("mtls").MTLS = &auth.MTLSSpec{URI: "a", CN: "b"}
	b.caller("wild").MTLS = &auth.MTLSSpec{DNS: "*.example.com"}
	b.caller("ca-less").MTLS = &auth.MTLSSpec{CN: "etl"}
	b.caller("absent").MTLS = &auth.MTLSSpec{CN: "etl", CA: "absent.pem"}
	b.caller("sha1").MTLS = &auth.MTLSSpec{Fingerprint: auth.Fingerprints{strings.Repeat("AB:", 31) + "AB", strings.Repeat("ab", 20)}}
	b.caller("domain").MTLS = &auth.MTLSSpec{URI: "spiffe://corp"}
	b.caller("upper").MTLS = &auth.MTLSSpec{URI: "spiffe://Corp/etl"}
	b.addHMAC("many", "github", make([]string, 65)...)
	for path, want := range map[string]string{
		"error callers.none: ":                     "needs a credential",
		"error callers.empty: ":                    "needs a credential",
		"error callers.short.hmac.keys.0":          "at least 16",
		"warning callers.soso.hmac.keys.0":         "at least 32",
		"error callers.typo.hmac.scheme":           "bitbucket, bitbucket-server",
		"error callers.mixed.hmac.scheme":          "no other setting",
		"error callers.keyless.hmac.keys":          "at least one",
		"error callers.twins.hmac.keys.1.id":       "another key",
		"error callers.noid.hmac.keys.1":           "needs an id",
		"error callers.dates.hmac.keys.0.not_afte": "never valid",
		"error callers.alg.hmac.keys.0.alg":        "only for keys of jwt and signature",
		"error callers.base64.hmac.keys.0":         "not base64",
		"error callers.whsk.hmac.keys.0":           "not base64",
		"error callers.curve.hmac.keys.0":          "Ed25519 public key has 32",
		"error callers.mtls.mtls":                  "one of uri, dns, cn and fingerprint",
		"error callers.ca-less.mtls":               "needs a ca, or tls.client_ca",
		"error callers.absent.mtls.ca":             "no such file",
		"error callers.sha1.mtls.fingerprint.1":    "not a SHA-256 fingerprint",
		"error callers.domain.mtls.uri":            "not the SPIFFE ID",
		"error callers.upper.mtls.uri":             "not the SPIFFE ID",
		"error callers.wild.mtls.dns":              "wildcard",
		"error callers.many.hmac.keys":             "at most 64",
	} {
		b.wantProblem(path, want)
	}
}

// TestHMAC_EmptyBody: a request for runs has an empty body, so its signature would also be valid for a delivery with an
// empty body. An attacker that has seen such a request could start a run with it.
func TestHMAC_EmptyBody(t *testing.T) {
	for _, scheme := range []string{"github", "stripe", "standard-webhooks"} {
		b := newBench(t)
		p := newPair(scheme, "empty")
		b.addHMAC("ci", scheme, p.verify)
		c := b.compile()
		r := newRefusal(t, c, delivery("", signed(t, scheme, p.sign, "")), auth.Malformed, "ci")
		if r.Caller != "ci" || !strings.Contains(r.Detail, "empty") {
			t.Errorf("%s: %+v", scheme, r)
		}
		if id := wantCaller(t, c, delivery("", signed(t, scheme, p.sign, "")), "ci"); id.NeverStale != (scheme == "github") {
			t.Errorf("%s: %+v", scheme, id)
		}
		wantCaller(t, c, delivery("{}", signed(t, scheme, p.sign, "{}")), "ci", "ci")
	}
}

// TestHMAC_TimestampSpelling: with leading zeros, part of the text before the timestamp could become part of the
// timestamp, or the reverse.
func TestHMAC_TimestampSpelling(t *testing.T) {
	b := newBench(t)
	b.caller("own").HMAC = &auth.HMACSpec{SchemeSpec: webhook.SchemeSpec{
		Header: "X-Sig", Signed: "{body}0{ts}", TS: &webhook.TimeSpec{Header: "X-Ts"},
	}, Keys: []auth.KeySpec{b.writeKey("k", secretA)}}
	c := b.compile()
	mac := hmac.New(sha256.New, []byte(secretA))
	ts := strconv.FormatInt(now().Unix(), 10)
	_, _ = io.WriteString(mac, "100"+"0"+ts)
	h := http.Header{"X-Sig": {hex.EncodeToString(mac.Sum(nil))}, "X-Ts": {ts}}
	wantCaller(t, c, delivery("100", h), "own")
	h["X-Ts"] = []string{"0" + ts}
	newRefusal(t, c, delivery("10", h), auth.Malformed)
}

func TestScheme_Incomplete(t *testing.T) {
	ok := webhook.SchemeSpec{Header: "X-Sig", Signed: "{body}"}
	change := func(f func(*webhook.SchemeSpec)) webhook.SchemeSpec {
		s := ok
		f(&s)
		return s
	}
	for want, spec := range map[string]webhook.SchemeSpec{
		"header: is missing":                 change(func(s *webhook.SchemeSpec) { s.Header = "" }),
		"header: is not the name":            change(func(s *webhook.SchemeSpec) { s.Header = "X Sig" }),
		"value: begins with Bearer":          change(func(s *webhook.SchemeSpec) { s.Header, s.Value = "authorization", "bearer {sig}" }),
		"value: each entry needs":            change(func(s *webhook.SchemeSpec) { s.Value = "sha256=" }),
		"value: several":                     change(func(s *webhook.SchemeSpec) { s.Value = "{sig},{sig}" }),
		"value: {hole}":                      change(func(s *webhook.SchemeSpec) { s.Value = "{body}" }),
		"value: needs {sig} once":            change(func(s *webhook.SchemeSpec) { s.Value, s.List = "a={sig},b={sig}", "," }),
		"hash: sha1":                         change(func(s *webhook.SchemeSpec) { s.Hash = "sha1" }),
		"hash: md5":                          change(func(s *webhook.SchemeSpec) { s.Hash = "md5" }),
		"dangerously_sha1: ":                 change(func(s *webhook.SchemeSpec) { s.SHA1 = true }),
		"encoding: ":                         change(func(s *webhook.SchemeSpec) { s.Encoding = "base32" }),
		"key.encoding: is not":               change(func(s *webhook.SchemeSpec) { s.Key.Encoding = "latin1" }),
		"key.encoding: ed25519":              change(func(s *webhook.SchemeSpec) { s.Hash = "ed25519" }),
		"list: ":                             change(func(s *webhook.SchemeSpec) { s.List = ", " }),
		"signed: needs {body} once":          change(func(s *webhook.SchemeSpec) { s.Signed = "" }),
		"signed: needs {body} twice":         change(func(s *webhook.SchemeSpec) { s.Signed = "{body}{body}" }),
		"signed: hole":                       change(func(s *webhook.SchemeSpec) { s.Signed = "{body}{path}" }),
		"signed: literal after":              change(func(s *webhook.SchemeSpec) { s.Signed, s.ID = "{id}{body}", &webhook.FieldSpec{Header: "X-Id"} }),
		"signed: nothing between":            change(func(s *webhook.SchemeSpec) { s.Signed, s.TS = "{body}{ts}", &webhook.TimeSpec{Header: "X-Ts"} }),
		"signed: the id after the body":      change(func(s *webhook.SchemeSpec) { s.Signed, s.ID = "{body}-{id}.", &webhook.FieldSpec{Header: "X-Id"} }),
		"signed: nothing before the id":      change(func(s *webhook.SchemeSpec) { s.Signed, s.ID = "{body}{id}.", &webhook.FieldSpec{Header: "X-Id"} }),
		"ts: is missing":                     change(func(s *webhook.SchemeSpec) { s.Signed = "{ts}.{body}" }),
		"ts: must stand in one place":        change(func(s *webhook.SchemeSpec) { s.TS = &webhook.TimeSpec{} }),
		"ts: is not covered":                 change(func(s *webhook.SchemeSpec) { s.TS = &webhook.TimeSpec{Header: "X-Ts"} }),
		"ts: is not covered in the value":    change(func(s *webhook.SchemeSpec) { s.Value, s.List = "{ts},v1={sig}", "," }),
		"ts.unit: ":                          change(func(s *webhook.SchemeSpec) { s.TS = &webhook.TimeSpec{Body: "t", Unit: "ns"} }),
		"ts.tolerance: ":                     change(func(s *webhook.SchemeSpec) { s.TS = &webhook.TimeSpec{Body: "t", Tolerance: -1} }),
		"id: must be a header":               change(func(s *webhook.SchemeSpec) { s.ID = &webhook.FieldSpec{Header: "X-Id"} }),
		"id: must be a header if it is sign": change(func(s *webhook.SchemeSpec) { s.Signed = "{id}.{body}" }),
		"id: needs one of":                   change(func(s *webhook.SchemeSpec) { s.ID = &webhook.FieldSpec{} }),
		"event: needs one of":                change(func(s *webhook.SchemeSpec) { s.Event = &webhook.FieldSpec{Header: "A", Body: "b"} }),
	} {
		b := newBench(t)
		b.caller("own").HMAC = &auth.HMACSpec{SchemeSpec: spec, Keys: []auth.KeySpec{b.writeKey("k", secretA)}}
		field, _, _ := strings.Cut(want, ":")
		b.wantProblem("error callers.own.hmac." + field + ":")
	}
	b := newBench(t)
	sha1 := change(func(s *webhook.SchemeSpec) { s.Hash, s.SHA1 = "sha1", true })
	b.caller("own").HMAC = &auth.HMACSpec{SchemeSpec: sha1, Keys: []auth.KeySpec{b.writeKey("k", secretA)}}
	b.compile()
}

// TestReplay_DefaultOfForges: the presets of git forges let a user send a delivery again whose run failed.
func TestReplay_DefaultOfForges(t *testing.T) {
	b := newBench(t)
	b.addHMAC("forge", "github", secretA)
	b.addHMAC("other", "sonarqube", secretB)
	c := b.compile()
	if !wantCaller(t, c, delivery("{}", signed(t, "github", secretA, "{}")), "forge").UntilSuccess {
		t.Error("github: not until_success")
	}
	if wantCaller(t, c, delivery("{}", signed(t, "sonarqube", secretB, "{}")), "other").UntilSuccess {
		t.Error("sonarqube: until_success")
	}
	b.specs["forge"].Replay = "check"
	if wantCaller(t, b.compile(), delivery("{}", signed(t, "github", secretA, "{}")), "forge").UntilSuccess {
		t.Error("check: until_success")
	}
}
