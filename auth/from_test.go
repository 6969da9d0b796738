package auth_test

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"sallyport/auth"
	"sallyport/internal/netid"
)

func networks(t testing.TB, texts ...string) (list []netid.Network) {
	t.Helper()
	for _, text := range texts {
		var n netid.Network
		if err := n.UnmarshalText([]byte(text)); err != nil {
			t.Fatal(err)
		}
		list = append(list, n)
	}
	return list
}

// from returns a delivery that comes from an address.
func from(address string, h http.Header) *auth.Delivery {
	d := delivery("{}", h)
	d.Address = netip.MustParseAddr(address)
	return d
}

// TestFrom_EachKind sends valid credentials of several kinds from addresses in the networks of their caller, and from
// elsewhere.
func TestFrom_EachKind(t *testing.T) {
	b := newBench(t)
	b.addHMAC("github", "github", secretA)
	b.addToken("gitlab", "X-Gitlab-Token", secretB)
	b.addJWT("ci", nil, b.writeKey("", testKeys().hs256))
	for _, name := range []string{"github", "gitlab", "ci"} {
		b.caller(name).From = networks(t, "10.1.0.0/16", "2001:db8::7")
	}
	c := b.compile()
	for caller, h := range map[string]http.Header{
		"github": signed(t, "github", secretA, "{}"),
		"gitlab": headers("X-Gitlab-Token", secretB),
		"ci":     headers("Authorization", "Bearer "+signHS256(t, validClaims())),
	} {
		for _, address := range []string{"10.1.2.3", "::ffff:10.1.2.3", "2001:db8::7"} {
			wantCaller(t, c, from(address, h), caller)
		}
		for _, address := range []string{"10.2.0.1", "127.0.0.1", "2001:db8::8"} {
			r := newRefusal(t, c, from(address, h), auth.Misplaced, caller)
			if r.Caller != caller || !strings.Contains(r.Detail, address) || r.Key == "" {
				t.Errorf("the log has %+v", r)
			}
		}
		newRefusal(t, c, delivery("{}", h), auth.Misplaced)
	}
	// A wrong credential is wrong from everywhere.
	newRefusal(t, c, from("10.9.9.9", signed(t, "github", secretC, "{}")), auth.Wrong)
}

// TestFrom_StillValid asks about an answer in progress after the networks of its caller have changed.
func TestFrom_StillValid(t *testing.T) {
	b := newBench(t)
	b.addHMAC("github", "github", secretA)
	d := from("10.1.2.3", nil)
	for _, x := range []struct {
		network string
		want    bool
	}{{"10.1.0.0/16", true}, {"10.2.0.0/16", false}} {
		b.caller("github").From = networks(t, x.network)
		if got := b.compile().StillValid(d, "github", "hmac", "a"); got != x.want {
			t.Errorf("with %s: %v", x.network, got)
		}
	}
}

// TestFrom_EmptyList is an error, because it would refuse each delivery.
func TestFrom_EmptyList(t *testing.T) {
	b := newBench(t)
	b.addHMAC("github", "github", secretA)
	b.caller("github").From = []netid.Network{}
	b.wantProblem("error callers.github.from: ", "lists no network")
}
