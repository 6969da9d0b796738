package auth_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sallyport/auth"
)

// TestRefusal_CostWithinBound sends deliveries with each kind of error. None costs more than the bound that each
// refusal is extended to.
func TestRefusal_CostWithinBound(t *testing.T) {
	b := newBench(t)
	b.addHMAC("github", "github", secretA, secretB)
	b.addHMAC("slack", "slack", secretC)
	b.addHMAC("gitea", "gitea", secretA)
	b.addHMAC("foreign", "github", "a secret of at least 32 bytes: DDDD")
	b.addJWT("ci", nil, b.writeKey("", testKeys().hs256))
	specs, sign := senderKeys(b)
	b.caller("sender").Signature = &auth.SignatureSpec{Authority: []string{"hooks.example.com"}, Keys: specs}
	b.caller("sender").From = networks(t, "10.1.0.0/16")
	c := b.compile()
	hook := []string{"github", "slack", "gitea", "ci", "sender"}
	body := strings.Repeat("x", 100<<10)
	message := signRequest(t, sign[hmacID], newRequest("POST", "/start", body), "", "")
	message.Address = netip.MustParseAddr("10.1.0.1")
	elsewhere := signRequest(t, sign[hmacID], newRequest("POST", "/start", body), "", "")
	elsewhere.Address = netip.MustParseAddr("192.0.2.1")
	late := signRequest(t, sign[hmacID], newRequest("POST", "/start", body), "", "")
	late.Now = now().Add(time.Hour)
	wrong := signRequest(t, sign[hmacID], newRequest("POST", "/start", body), "", "")
	wrong.Body = []byte(body + "y")
	forged := signRequest(t, sign[hmacID], newRequest("POST", "/start", body), "", "")
	forged.Method = "PUT"
	for why, d := range map[string]*auth.Delivery{
		"nothing":           delivery(body, headers()),
		"an unknown scheme": delivery(body, headers("Stripe-Signature", "t=1,v1=00")),
		"a wrong signature": delivery(body, headers("X-Hub-Signature-256", "sha256="+strings.Repeat("0", 64))),
		"no signature":      delivery(body, headers("X-Hub-Signature-256", "sha256=00")),
		"a stale signature": delivery(body, signedAt(t, "slack", secretC, body, "", now().Add(-time.Hour))),
		"another's, forged": delivery(body, signed(t, "github", "a secret of at least 32 bytes: EEEE", body)),
		"a forged form":     delivery("payload="+body, signed(t, "gitea", secretB, body)),
		"no form":           delivery("payload="+body+"&", signed(t, "gitea", secretA, body)),
		"a forged token":    bearerDelivery(rawToken(`{"alg":"HS256"}`, fmt.Sprintf(`{"iss":%q}`, issuer), secretC)),
		"a late message":    late, "a wrong digest": wrong, "a forged message": forged,
		"another address": elsewhere,
	} {
		_, err := c.Authenticate(d, hook)
		if err == nil {
			t.Errorf("%s: accepted", why)
			continue
		}
		if all, done := auth.CostOf(c, d, hook); done > all || all < 4*len(d.Body) {
			t.Errorf("%s: took %d of %d", why, done, all)
		}
	}
	if _, err := c.Authenticate(message, hook); err != nil {
		t.Error(err)
	}
}

// TestMaxVerifyCost_HidesKeyCount compares the observable cost of a hook with few keys and of one with more.
func TestMaxVerifyCost_HidesKeyCount(t *testing.T) {
	work := func(keys int) int {
		b := newBench(t)
		var secrets []string
		for i := range keys {
			secrets = append(secrets, fmt.Sprintf("secret number %d of at least 32 bytes", i))
		}
		b.addHMAC("github", "github", secrets...)
		return b.compile().MaxVerifyCost([]string{"github"}, 1<<20)
	}
	if one := work(1); one != work(8) || one == work(9) || work(9) != work(16) {
		t.Errorf("work for 1, 8, 9, 16 keys: %d, %d, %d, %d", one, work(8), work(9), work(16))
	}
}
