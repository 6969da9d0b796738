package auth_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"sallyport/auth"
	"sallyport/auth/httpsig"
	"sallyport/auth/webhook"
)

// ledger keeps the names of accepted deliveries, as the store does, until they expire.
type ledger map[string]time.Time

// accepts reports whether a delivery is the first with its names, and keeps the names.
func (l ledger) accepts(id *auth.Identity, now time.Time) bool {
	for _, name := range append([]string{id.Replay}, id.Aliases...) {
		if until, ok := l[name]; ok && (until.IsZero() || now.Before(until)) {
			return false
		}
	}
	for _, name := range append([]string{id.Replay}, id.Aliases...) {
		l[name] = id.Until
	}
	return true
}

// file is a configuration with one caller, which a test changes step by step.
type file struct {
	*bench

	kind      string
	caller    string
	all       []auth.KeySpec // some of them are in the file
	listed    [3]bool
	suffix    string // suffix of the ids of keys
	tolerance time.Duration
}

// replayKinds returns the kinds of credentials that a delivery is recognised by.
func replayKinds() []string {
	return []string{"list", "standard-webhooks", "github", "id", "jwt", "signature", "token", "token-body"}
}

// secretOf returns the i-th key of a file, as the text that its sender has.
func secretOf(kind string, i int) string {
	seed := fmt.Sprintf("key %d of thirty-two bytes or so..", i)
	if kind == "standard-webhooks" {
		return newPair(kind, seed).sign
	}
	return seed
}

func newFile(t testing.TB, kind string) *file {
	t.Helper()
	f := &file{
		bench: newBench(t), kind: kind, caller: "first", listed: [3]bool{true, false, false}, tolerance: time.Minute,
	}
	for i := range f.listed {
		f.all = append(f.all, f.writeKey(fmt.Sprintf("k%d", i), secretOf(kind, i)))
	}
	return f
}

func (f *file) keys() (keys []auth.KeySpec) {
	for i, k := range f.all {
		if k.ID += f.suffix; f.listed[i] {
			keys = append(keys, k)
		}
	}
	return keys
}

// listScheme is like Stripe's, with as many signatures as the sender has keys.
func listScheme(id bool, tolerance time.Duration) webhook.SchemeSpec {
	s := webhook.SchemeSpec{
		Header: "X-Sig", Value: "t={ts},v1={sig}", List: ",", Signed: "{ts}.{body}",
		TS: &webhook.TimeSpec{Tolerance: tolerance},
	}
	if id {
		s.ID = &webhook.FieldSpec{Body: "id"}
	}
	return s
}

func (f *file) load() *auth.Callers {
	f.Helper()
	spec := &auth.CallerSpec{Replay: "check"}
	switch f.kind {
	case "list", "id":
		spec.HMAC = &auth.HMACSpec{SchemeSpec: listScheme(f.kind == "id", f.tolerance), Keys: f.keys()}
	case "jwt":
		spec.JWT = &auth.JWTSpec{
			Issuer: issuer, Audience: audience, Keys: f.keys(), MaxAge: f.tolerance, Leeway: min(f.tolerance, 5*time.Minute),
		}
	case "signature":
		spec.Signature = &auth.SignatureSpec{Authority: []string{"hooks.example.com"}, Keys: f.keys(), MaxAge: f.tolerance}
	case "token", "token-body":
		spec.Token = &auth.TokenSpec{Keys: f.keys()}
	default:
		spec.HMAC = &auth.HMACSpec{Scheme: f.kind, Keys: f.keys()}
	}
	f.specs = map[string]*auth.CallerSpec{f.caller: spec}
	return f.compile()
}

// sent is a delivery as it was sent. It has a signature of each of its keys, if its scheme allows several.
type sent struct {
	header http.Header
	body   string
	list   string   // the header that has several
	sigs   []string // its entries
	took   bool
}

func (f *file) send(n int, signers []int, now time.Time) *sent {
	f.Helper()
	s := &sent{body: fmt.Sprintf(`{"id":"evt_%d"}`, n), header: http.Header{}}
	first := secretOf(f.kind, signers[0])
	switch f.kind {
	case "list", "id":
		for _, i := range signers {
			h := craftHeaders(listScheme(f.kind == "id", f.tolerance), secretOf(f.kind, i), fmt.Sprint(now.Unix()), "", s.body)
			ts, sig, _ := strings.Cut(h.Get("X-Sig"), ",")
			s.list, s.header, s.sigs = "X-Sig", h, append(s.sigs, ts+","+sig)
		}
	case "standard-webhooks":
		for _, i := range signers {
			s.header = signedAt(f, f.kind, secretOf(f.kind, i), s.body, fmt.Sprintf("msg_%d", n), now)
			s.list, s.sigs = "Webhook-Signature", append(s.sigs, s.header.Get("Webhook-Signature"))
		}
	case "github":
		s.header = signedAt(f, f.kind, first, s.body, "", now)
	case "jwt":
		claims := jwt.MapClaims{"iss": issuer, "aud": audience, "iat": now.Unix(), "exp": now.Unix() + 3600}
		if n%2 == 0 {
			claims["jti"] = fmt.Sprint(n)
		}
		s.header.Set("Authorization", "Bearer "+signToken(f, jwt.SigningMethodHS256, []byte(first), claims))
	case "signature":
		key, err := httpsig.NewSigningKey(f.all[signers[0]].ID+f.suffix, []byte(first))
		if err != nil {
			f.Fatal(err)
		}
		nonce := ""
		if n%2 == 0 {
			nonce = fmt.Sprint(n)
		}
		d := newRequest("POST", "/start", s.body)
		d.Now = now
		s.header = signRequest(f, key, d, nonce, "").Header
	case "token", "token-body":
		s.header.Set("Authorization", "Bearer "+first)
		if f.kind == "token" {
			s.header.Set("Idempotency-Key", fmt.Sprint(n))
		}
	}
	if s.list != "" {
		s.header.Set(s.list, f.join(s.sigs))
	}
	return s
}

// join returns the header with these signatures.
func (f *file) join(sigs []string) string {
	if f.kind == "standard-webhooks" {
		return strings.Join(sigs, " ")
	}
	ts, all := "", []string{}
	for _, s := range sigs {
		at, sig, _ := strings.Cut(s, ",")
		ts, all = at, append(all, sig)
	}
	return ts + "," + strings.Join(all, ",")
}

// FuzzAcceptedOnce sends deliveries and replays them, whole or with fewer of their
// signatures, while the file changes: the caller and the ids of keys are renamed,
// keys are added and removed, tolerances are raised, time goes by. None is
// accepted twice.
func FuzzAcceptedOnce(f *testing.F) {
	for i := range replayKinds() {
		kind := byte(i)
		f.Add([]byte{kind, 5, 0, 6})                                    // send, rename, replay
		f.Add([]byte{kind, 5 + 8*2, 1 + 8, 1, 7 + 8, 0, 7, 6})          // signed by two, keys exchanged one by one
		f.Add([]byte{kind, 5 + 8*2, 1 + 8, 1, 0, 7 + 8})                // and the caller renamed in the same step
		f.Add([]byte{kind, 5, 5, 4 + 8, 3 + 8*3, 6, 6 + 8, 4 + 16, 6})  // tolerance raised after a while
		f.Add([]byte{kind, 5, 5, 6, 6 + 8, 4 + 8*3, 6, 3 + 8*2, 6 + 8}) // two deliveries
	}
	f.Fuzz(func(t *testing.T, program []byte) {
		if len(program) < 2 || len(program) > 64 {
			return
		}
		conf, at, seen := newFile(t, replayKinds()[int(program[0])%len(replayKinds())]), now(), ledger{}
		var history []*sent
		deliver := func(s *sent, header http.Header) {
			d := newRequest("POST", "/start", s.body)
			d.Header, d.Now = header, at
			id, err := conf.load().Authenticate(d, nil)
			if err != nil || !seen.accepts(id, at) {
				return
			}
			if s.took {
				t.Errorf("%s: accepted twice: %v", conf.kind, header)
			}
			s.took = true
		}
		for _, b := range program[1:] {
			arg := int(b / 8)
			switch b % 8 {
			case 0:
				conf.caller = []string{"first", "second", "third"}[(arg+1)%3]
			case 1:
				if conf.listed[arg%3] = !conf.listed[arg%3]; conf.listed == [3]bool{} {
					conf.listed[(arg+1)%3] = true
				}
			case 2:
				conf.suffix = []string{"", "-b", "-c"}[arg%3]
			case 3:
				conf.tolerance = []time.Duration{time.Minute, 5 * time.Minute, time.Hour, 24 * time.Hour}[arg%4]
			case 4:
				at = at.Add([]time.Duration{time.Second, 3 * time.Minute, 2 * time.Hour, 30 * time.Hour}[arg%4])
			case 5:
				s := conf.send(len(history), [][]int{{0}, {1}, {0, 1}, {1, 2}, {2, 0}, {0, 1, 2}}[arg%6], at)
				history = append(history, s)
				deliver(s, s.header.Clone())
			default:
				if len(history) == 0 {
					continue
				}
				s := history[arg%len(history)]
				h := s.header.Clone()
				if b%8 == 7 && s.list != "" {
					h.Set(s.list, s.sigs[arg/len(history)%len(s.sigs)])
				}
				deliver(s, h)
			}
		}
	})
}

// TestRetry_IsTheSameDelivery signs an id again after changes of the file, as senders do for a retry.
func TestRetry_IsTheSameDelivery(t *testing.T) {
	for _, kind := range []string{"standard-webhooks", "id"} {
		for change, f := range map[string]func(f *file){
			"nothing":                     func(*file) {},
			"the caller is renamed":       func(f *file) { f.caller = "second" },
			"a key is added":              func(f *file) { f.listed[1] = true },
			"the key is another":          func(f *file) { f.listed = [3]bool{false, true, false} },
			"renamed, and a key is added": func(f *file) { f.caller, f.listed[1] = "second", true },
		} {
			conf, seen := newFile(t, kind), ledger{}
			first := conf.send(1, []int{0}, now())
			if !seen.accepts(wantCaller(t, conf.load(), delivery(first.body, first.header), "first"), now()) {
				t.Fatal("the first is a replay")
			}
			f(conf)
			later := now().Add(time.Hour)
			signer := slices.Index(conf.listed[:], true)
			if conf.listed[1] {
				signer = 1
			}
			retry := conf.send(1, []int{signer}, later)
			d := delivery(retry.body, retry.header)
			d.Now = later
			if seen.accepts(wantCaller(t, conf.load(), d, conf.caller), later) {
				t.Errorf("%s: a retry is another delivery after this change: %s", kind, change)
			}
		}
	}
}

// TestSharedSecret_IsOneDelivery has two callers with the same secret. The same rule applies as to a caller that was
// renamed.
func TestSharedSecret_IsOneDelivery(t *testing.T) {
	b := newBench(t)
	b.addHMAC("a", "github", secretA)
	b.addHMAC("b", "github", secretA)
	b.addHMAC("c", "github", secretB)
	b.addHMAC("d", "svix", newPair("svix", "d").verify)
	b.addHMAC("e", "svix", newPair("svix", "e").verify)
	c := b.compile()
	seen := ledger{}
	d := delivery("{}", signed(t, "github", secretA, "{}"))
	if !seen.accepts(wantCaller(t, c, d, "a", "a"), now()) || seen.accepts(wantCaller(t, c, d, "b", "b"), now()) {
		t.Error("the delivery is not accepted once")
	}
	other := delivery("{}", signed(t, "github", secretB, "{}"))
	if !seen.accepts(wantCaller(t, c, other, "c", "c"), now()) {
		t.Error("one caller's delivery stands for another's")
	}
	for _, caller := range []string{"d", "e"} { // both with the id msg_1
		d := delivery("{}", signed(t, "svix", newPair("svix", caller).sign, "{}"))
		if !seen.accepts(wantCaller(t, c, d, caller, caller), now()) {
			t.Error("one caller's id stands for another's")
		}
	}
}
