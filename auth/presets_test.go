package auth_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"sallyport/auth"
	"sallyport/auth/webhook"
	"sallyport/internal/diag"
)

// pair is the key of a caller's configuration, and the one that its sender signs with.
type pair struct{ verify, sign string }

func newPair(scheme, seed string) pair {
	seed = (seed + strings.Repeat("*", 32))[:32]
	private := ed25519.NewKeyFromSeed([]byte(seed))
	public := private.Public().(ed25519.PublicKey) //nolint:forcetypeassert // it is one
	s, _ := webhook.Preset(scheme)
	switch spec := s.Spec(); {
	case spec.Hash == "ed25519":
		return pair{hex.EncodeToString(public), hex.EncodeToString(private)}
	case spec.Key.Encoding == "base64":
		text := "whsec_" + base64.StdEncoding.EncodeToString([]byte(seed))
		return pair{text, text}
	}
	return pair{seed, seed}
}

func publicPair(seed string) pair {
	private := ed25519.NewKeyFromSeed([]byte((seed + strings.Repeat("*", 32))[:32]))
	public := private.Public().(ed25519.PublicKey) //nolint:forcetypeassert // it is one
	return pair{
		"whpk_" + base64.StdEncoding.EncodeToString(public),
		"whsk_" + base64.StdEncoding.EncodeToString(private),
	}
}

func bodyFor(at time.Time) string {
	return fmt.Sprintf(`{"id":"evt_1","event":{"id":"p1","event_type":"x"},"type":"x","webhookTimestamp":%d}`, at.UnixMilli())
}

// TestPresets_Tampering tries the same attacks on each row of SCHEMES.
func TestPresets_Tampering(t *testing.T) {
	for _, name := range webhook.Presets() {
		t.Run(name, func(t *testing.T) { attackPreset(t, name, newPair(name, "right"), newPair(name, "wrong")) })
	}
	for _, name := range []string{"standard-webhooks", "svix"} {
		t.Run(name+" v1a", func(t *testing.T) { attackPreset(t, name, publicPair("right"), publicPair("wrong")) })
	}
}

func attackPreset(t *testing.T, name string, right, wrong pair) {
	t.Helper()
	b := newBench(t)
	b.addHMAC("sender", name, right.verify)
	// A valid token of another caller must not make up for a wrong signature.
	b.addToken("weak", "X-Weak", secretC)
	c := b.compile()
	s, _ := webhook.Preset(name)
	spec := s.Spec()
	body := bodyFor(now())
	fresh := func() *auth.Delivery {
		d := delivery(body, signed(t, name, right.sign, body))
		d.Header.Set("X-Weak", secretC)
		return d
	}
	id := wantCaller(t, c, fresh(), "sender", "sender")
	if id.Kind != "hmac" || id.Key != "a" || id.Replay == "" {
		t.Errorf("identity %+v", id)
	}
	for _, tamper := range tamperings(t, name, spec, wrong) {
		d := fresh()
		tamper.change(d)
		if id, err := c.Authenticate(d, []string{"sender", "weak"}); err == nil {
			t.Errorf("%s: accepted as %s", tamper.name, id.Caller)
		}
	}
	attackTimes(t, c, name, right, spec)
}

type tampering struct {
	name   string
	change func(*auth.Delivery)
}

func tamperings(t *testing.T, name string, spec webhook.SchemeSpec, wrong pair) []tampering {
	t.Helper()
	sig := spec.Header
	edit := func(f func(string) string) func(*auth.Delivery) {
		return func(d *auth.Delivery) { d.Header.Set(sig, f(d.Header.Get(sig))) }
	}
	list := []tampering{
		{"another body", func(d *auth.Delivery) { d.Body = append(d.Body, ' ') }},
		{"no body", func(d *auth.Delivery) { d.Body = nil }},
		{"another key", func(d *auth.Delivery) {
			d.Header.Set(sig, signed(t, name, wrong.sign, string(d.Body)).Get(sig))
		}},
		{"the header twice", func(d *auth.Delivery) { d.Header.Add(sig, d.Header.Get(sig)) }},
		{"the right one behind a wrong one", func(d *auth.Delivery) { d.Header[sig] = []string{"x", d.Header.Get(sig)} }},
		{"cut short", edit(func(s string) string { return s[:len(s)-2] })},
		{"longer", edit(func(s string) string { return s + "00" })},
		{"a changed character", edit(func(s string) string { return changeCharacter(s, len(s)-6) })},
		{"empty", edit(func(string) string { return "" })},
		{"white space inside", edit(func(s string) string { return s[:len(s)-6] + "\r\n" + s[len(s)-6:] })},
		{"NUL behind it", edit(func(s string) string { return s + "\x00" })},
		{"the other encoding", edit(func(s string) string { return otherEncoding(s, spec.Encoding) })},
		{"very long", edit(func(s string) string { return s + strings.Repeat(" ", 20<<10) })},
		{"many entries", edit(func(s string) string { return strings.Repeat("v9=00,", 20) + s })},
	}
	for _, h := range []*string{tsHeader(spec), idHeader(spec)} {
		if h == nil {
			continue
		}
		field := *h
		list = append(list,
			tampering{"without " + field, func(d *auth.Delivery) { d.Header.Del(field) }},
			tampering{"twice " + field, func(d *auth.Delivery) { d.Header.Add(field, d.Header.Get(field)) }},
			tampering{"another " + field, func(d *auth.Delivery) { d.Header.Set(field, changeCharacter(d.Header.Get(field), 3)) }},
			tampering{"white space in " + field, func(d *auth.Delivery) { d.Header.Set(field, " "+d.Header.Get(field)) }},
			tampering{"a sign in " + field, func(d *auth.Delivery) { d.Header.Set(field, "+"+d.Header.Get(field)) }},
		)
	}
	if spec.JSON {
		list = append(list, tampering{"a form with another field", func(d *auth.Delivery) {
			d.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			d.Body = []byte(formOf(string(d.Body)) + "&ref=main")
		}})
	}
	return list
}

func tsHeader(spec webhook.SchemeSpec) *string {
	if spec.TS == nil || spec.TS.Header == "" {
		return nil
	}
	return &spec.TS.Header
}

func idHeader(spec webhook.SchemeSpec) *string {
	if spec.ID == nil || spec.ID.Header == "" {
		return nil
	}
	return &spec.ID.Header
}

// changeCharacter changes one character to another that is as good in hex, base64 and decimal.
func changeCharacter(s string, i int) string {
	c := byte('0')
	if s[i] == c {
		c = '1'
	}
	return s[:i] + string(c) + s[i+1:]
}

func otherEncoding(value, encoding string) string {
	i := strings.LastIndexAny(value, "=,")
	if encoding == "base64" {
		i = strings.LastIndex(value, ",")
		raw, _ := base64.StdEncoding.DecodeString(value[i+1:])
		return value[:i+1] + hex.EncodeToString(raw)
	}
	raw, _ := hex.DecodeString(value[i+1:])
	return value[:i+1] + base64.StdEncoding.EncodeToString(raw)
}

// attackTimes holds a scheme with a timestamp to its tolerance, both ways.
func attackTimes(t *testing.T, c *auth.Callers, name string, right pair, spec webhook.SchemeSpec) {
	t.Helper()
	if spec.TS == nil {
		return
	}
	send := func(at time.Time) *auth.Delivery {
		body := bodyFor(at)
		return delivery(body, signedAt(t, name, right.sign, body, "msg_1", at))
	}
	tolerance := spec.TS.Tolerance
	wantCaller(t, c, send(now().Add(-tolerance)), "sender")
	wantCaller(t, c, send(now().Add(tolerance)), "sender")
	newRefusal(t, c, send(now().Add(-tolerance-time.Second)), auth.Stale)
	newRefusal(t, c, send(now().Add(tolerance+time.Second)), auth.Stale)
	// If the signature is wrong, a stale timestamp proves nothing, so the reason is Wrong.
	d := send(now().Add(-24 * time.Hour))
	d.Body = append(d.Body, ' ')
	newRefusal(t, c, d, auth.Wrong)
}

func TestHMAC_HexCase(t *testing.T) {
	b := newBench(t)
	b.addHMAC("fivetran", "fivetran", secretA)
	c := b.compile()
	h := signed(t, "fivetran", secretA, "{}")
	lower := wantCaller(t, c, delivery("{}", h), "fivetran")
	h.Set("X-Fivetran-Signature-256", strings.ToUpper(h.Get("X-Fivetran-Signature-256")))
	if upper := wantCaller(t, c, delivery("{}", h), "fivetran"); upper.Replay != lower.Replay {
		t.Error("a respelled signature passes for another delivery")
	}
}

func TestHMAC_Base64Spelling(t *testing.T) {
	b := newBench(t)
	b.addHMAC("shopify", "shopify", secretA)
	c := b.compile()
	h := signed(t, "shopify", secretA, "{}")
	value := h.Get("X-Shopify-Hmac-Sha256")
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	last := strings.IndexByte(alphabet, value[42]) // before the one "="; two of its bits are spare
	for _, other := range []string{value[:42] + string(alphabet[last^1]) + "=", value[:43], value + "=", strings.NewReplacer("+", "-", "/", "_").Replace(value[:43])} {
		h.Set("X-Shopify-Hmac-Sha256", other)
		newRefusal(t, c, delivery("{}", h), auth.Malformed)
	}
}

func TestHMAC_MaxEntries(t *testing.T) {
	b := newBench(t)
	b.addHMAC("pagerduty", "pagerduty", secretA)
	c := b.compile()
	h := signed(t, "pagerduty", secretA, "{}")
	right := h.Get("X-PagerDuty-Signature")
	wrong := "v1=" + strings.Repeat("0", 64) + ", "
	h.Set("X-PagerDuty-Signature", strings.Repeat(wrong, 15)+right)
	wantCaller(t, c, delivery("{}", h), "pagerduty")
	h.Set("X-PagerDuty-Signature", strings.Repeat(wrong, 16)+right)
	newRefusal(t, c, delivery("{}", h), auth.Malformed)
}

func TestScheme_Custom(t *testing.T) {
	b := newBench(t)
	b.caller("own").HMAC = &auth.HMACSpec{
		Keys: []auth.KeySpec{b.writeKey("1", secretA)},
		SchemeSpec: webhook.SchemeSpec{
			Header: "x-own", Value: `sig="{sig}";at={ts}`, List: ";", Hash: "sha512", Encoding: "base64", Signed: "{id}|{ts}|{body}",
			TS: &webhook.TimeSpec{Unit: "ms", Tolerance: time.Second}, ID: &webhook.FieldSpec{Header: "x-own-id"}, Event: &webhook.FieldSpec{Header: "x-own-event"},
		},
	}
	c := b.compile()
	s := webhook.CompileScheme(&b.specs["own"].HMAC.SchemeSpec, &diag.List{})
	sign := func(at time.Time) http.Header {
		h, err := s.Sign([]byte(secretA), []byte("hi"), "7", at)
		if err != nil {
			t.Fatal(err)
		}
		h.Set("X-Own-Event", "built")
		return h
	}
	if id := wantCaller(t, c, delivery("hi", sign(now())), "own"); id.Event != "built" {
		t.Errorf("the event is %q", id.Event)
	}
	newRefusal(t, c, delivery("hi", sign(now().Add(-1001*time.Millisecond))), auth.Stale)
	newRefusal(t, c, delivery("ho", sign(now())), auth.Wrong)
}
