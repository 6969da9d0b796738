package auth_test

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"sallyport/auth"
	"sallyport/auth/webhook"
	"sallyport/internal/diag"
)

// craftHeaders signs as a scheme's sender, with any text as time and id, also one that no sender would write. The
// caller writes a time that belongs into the body.
func craftHeaders(spec webhook.SchemeSpec, seed, ts, id, body string) http.Header {
	message := strings.NewReplacer("{ts}", ts, "{id}", id, "{body}", body).Replace(spec.Signed)
	var sum []byte
	if spec.Hash == "ed25519" {
		sum = ed25519.Sign(ed25519.NewKeyFromSeed([]byte(seed)), []byte(message))
	} else {
		mac := hmac.New(sha256.New, []byte(seed))
		_, _ = mac.Write([]byte(message))
		sum = mac.Sum(nil)
	}
	text := hex.EncodeToString(sum)
	if spec.Encoding == "base64" {
		text = base64.StdEncoding.EncodeToString(sum)
	}
	h := http.Header{
		spec.Header:    {strings.NewReplacer("{sig}", text, "{ts}", ts).Replace(spec.Value)},
		"Content-Type": {"application/json"},
	}
	if name := tsHeader(spec); name != nil {
		h[*name] = []string{ts}
	}
	if name := idHeader(spec); name != nil {
		h[*name] = []string{id}
	}
	return h
}

// timedSchemes returns, by name, the schemes with a signature that covers a time: all presets with a time, and some
// custom schemes.
func timedSchemes(t testing.TB) map[string]webhook.SchemeSpec {
	t.Helper()
	all := map[string]webhook.SchemeSpec{}
	for _, name := range webhook.Presets() {
		if s, _ := webhook.Preset(name); s.Spec().TS != nil {
			all[name] = s.Spec()
		}
	}
	for name, spec := range map[string]webhook.SchemeSpec{
		"own adjacent": {Header: "X-Own-A", Signed: "{ts}{body}", TS: &webhook.TimeSpec{Header: "X-Own-Ts-A"}},
		"own ms": {
			Header: "X-Own-M", Signed: "{ts}{body}",
			TS: &webhook.TimeSpec{Header: "X-Own-Ts-M", Unit: "ms", Tolerance: time.Second},
		},
		"own behind": {
			Header: "X-Own-B", Signed: "{body}0{ts}",
			TS: &webhook.TimeSpec{Header: "X-Own-Ts-B", Tolerance: 24 * time.Hour},
		},
		"own in body": {Header: "X-Own-J", Signed: "{body}", TS: &webhook.TimeSpec{Body: "webhookTimestamp"}},
	} {
		var p diag.List
		if all[name] = webhook.CompileScheme(&spec, &p).Spec(); p.Bad() {
			t.Fatal(name, p.All())
		}
	}
	return all
}

const timedSeed = "a seed of thirty-two bytes, ok.."

// timedCallers has a caller for each of the schemes.
func timedCallers(t testing.TB, schemes map[string]webhook.SchemeSpec) *auth.Callers {
	t.Helper()
	b := newBench(t)
	public := ed25519.NewKeyFromSeed([]byte(timedSeed)).Public().(ed25519.PublicKey) //nolint:forcetypeassert // it is one
	for name, spec := range schemes {
		key := timedSeed
		switch {
		case spec.Hash == "ed25519":
			key = hex.EncodeToString(public)
		case spec.Key.Encoding == "base64":
			key = spec.Key.Prefix + base64.StdEncoding.EncodeToString([]byte(timedSeed))
		}
		b.caller(name).HMAC = &auth.HMACSpec{SchemeSpec: spec, Keys: []auth.KeySpec{b.writeKey("a", key)}}
	}
	return b.compile()
}

func timedDelivery(spec webhook.SchemeSpec, ts string, now time.Time) *auth.Delivery {
	body := `{"webhookTimestamp":` + ts + `}`
	return &auth.Delivery{Header: craftHeaders(spec, timedSeed, ts, "msg_1", body), Body: []byte(body), Now: now}
}

// TestFarTime_IsNotFresh signs with a time that is 293 years ahead, where the difference of two times saturates, and
// with times in another unit than the scheme's.
func TestFarTime_IsNotFresh(t *testing.T) {
	schemes := timedSchemes(t)
	c := timedCallers(t, schemes)
	for name, spec := range schemes {
		send := func(n int64) (*auth.Identity, error) {
			return c.Authenticate(timedDelivery(spec, fmt.Sprint(n), now()), []string{name})
		}
		unit, other := now().Unix(), now().UnixMilli()
		if spec.TS.Unit == "ms" {
			unit, other = other, unit
		}
		if id, err := send(unit); err != nil || id.Caller != name {
			t.Errorf("%s: %v, %v", name, id, err)
		}
		const years = 293 * 366 * 24 * 3600
		for _, n := range []int64{
			other, unit + years, unit + 1000*years, unit - years, 1, 9999999999, 9999999999999, 1e15, now().UnixNano(),
		} {
			if id, err := send(n); err == nil {
				t.Errorf("%s: took the time %d as %s", name, n, id.Caller)
			}
		}
	}
}

// FuzzFreshness signs any text as the time. An accepted time must be within the tolerance, by arithmetic without
// limits.
func FuzzFreshness(f *testing.F) {
	schemes := timedSchemes(f)
	c := timedCallers(f, schemes)
	for _, ts := range []string{
		"1800000000", "1800000300", "1799999699", "1800000000000", "11046585600", "01800000000", "+1800000000", "1e9",
		"18000000000",
	} {
		f.Add(ts, int64(1_800_000_000), int64(0))
	}
	f.Add("9223372036", int64(1), int64(999_999_999))
	f.Fuzz(func(t *testing.T, ts string, second, nanosecond int64) {
		now := time.Unix(second%1e11, nanosecond)
		for name, spec := range schemes {
			if _, err := c.Authenticate(timedDelivery(spec, ts, now), []string{name}); err != nil {
				continue
			}
			n, ok := new(big.Int).SetString(ts, 10)
			if !ok {
				t.Fatalf("%s: took the time %q", name, ts)
			}
			unit := int64(time.Second)
			if spec.TS.Unit == "ms" {
				unit = int64(time.Millisecond)
			}
			wantNear(t, name, n.Mul(n, big.NewInt(unit)), now, spec.TS.Tolerance, spec.TS.Tolerance)
		}
	})
}

// wantNear checks that a time, in nanoseconds since the epoch, is near.
func wantNear(t *testing.T, name string, at *big.Int, now time.Time, past, future time.Duration) {
	t.Helper()
	age := big.NewInt(now.Unix())
	age.Mul(age, big.NewInt(1e9)).Add(age, big.NewInt(int64(now.Nanosecond()))).Sub(age, at)
	if age.Cmp(big.NewInt(int64(past))) > 0 || new(big.Int).Neg(age).Cmp(big.NewInt(int64(future))) > 0 {
		t.Errorf("%s: took what was signed %s ns ago", name, age)
	}
}

// FuzzMessageFreshness is FuzzFreshness for message signatures (RFC 9421).
func FuzzMessageFreshness(f *testing.F) {
	c, _ := signatureCallers(f, nil)
	for _, created := range []string{
		"1800000000", "1800000030", "1799999700", "1800000000000", "11046585600", "-1", "999999999999999", "1800000000.0",
		"01800000000",
	} {
		f.Add(created, "1800000010", int64(1_800_000_000))
	}
	f.Fuzz(func(t *testing.T, created, expires string, second int64) {
		x := byHand{input: whole + ";created=" + created + ";expires=" + expires + `;keyid="secret"`, lines: wholeLines}
		d := x.delivery()
		d.Now = time.Unix(second%1e11, 0)
		if _, err := c.Authenticate(d, []string{"sender"}); err != nil {
			return
		}
		at, ok := new(big.Int).SetString(created, 10)
		end, okEnd := new(big.Int).SetString(expires, 10)
		if !ok || !okEnd {
			t.Fatalf("took created=%q, expires=%q", created, expires)
		}
		wantNear(t, "created", at.Mul(at, big.NewInt(1e9)), d.Now, 5*time.Minute, 30*time.Second)
		if end.Cmp(big.NewInt(d.Now.Unix())) < 0 {
			t.Errorf("took what expired at %s, at %d", end, d.Now.Unix())
		}
	})
}

// FuzzTokenFreshness is FuzzFreshness for JWTs.
func FuzzTokenFreshness(f *testing.F) {
	c := newHS256Callers(f)
	for _, x := range [][3]string{
		{"1800000000", "1800000300", "1800000000"},
		{"1800000000.5", "1800000300", "0.1"},
		{"1e9", "1", "1"},
		{" 1800000000", "1800000300\n", "1 "},
		{"1800000000", "11046585600", "1"},
		{"11046585600", "11046585601", "11046585600"},
		{"-1", "-1", "-1"},
		{"1800000000000", "1800000000001", "1800000000000"},
	} {
		f.Add(x[0], x[1], x[2], int64(1_800_000_000))
	}
	f.Fuzz(func(t *testing.T, iat, exp, nbf string, second int64) {
		for _, text := range []string{iat, exp, nbf} {
			if !json.Valid([]byte(text)) {
				return
			}
		}
		d := bearerDelivery(rawToken(`{"alg":"HS256"}`, fmt.Sprintf(
			`{"iss":%q,"aud":%q,"ref":"refs/heads/main","run":7,"kubernetes.io":{"namespace":"ci"},"protected":true,`+
				`"iat":%s,"exp":%s,"nbf":%s}`,
			issuer, audience, iat, exp, nbf), testKeys().hs256))
		d.Now = time.Unix(second%1e11, 0)
		if _, err := c.Authenticate(d, nil); err != nil {
			return
		}
		at := map[string]*big.Int{}
		for name, text := range map[string]string{"iat": iat, "exp": exp, "nbf": nbf} {
			x, ok := new(big.Rat).SetString(strings.TrimSpace(text)) // JSON allows space around a number
			if !ok {
				t.Fatalf("took %s=%q", name, text)
			}
			x.Mul(x, new(big.Rat).SetInt64(1e9))
			at[name] = new(big.Int).Quo(x.Num(), x.Denom())
		}
		const leeway, long = 30*time.Second + time.Microsecond, 24 * time.Hour // a float has microseconds
		wantNear(t, "iat", at["iat"], d.Now, 10*time.Minute+leeway, leeway)
		wantNear(t, "exp", at["exp"], d.Now, leeway, long+leeway)
		if latest := big.NewInt(d.Now.Unix() + 31); at["nbf"].Cmp(latest.Mul(latest, big.NewInt(1e9))) > 0 {
			t.Errorf("took nbf=%s", nbf)
		}
	})
}
