package auth_test

import (
	"strings"
	"testing"

	"sallyport/auth"
)

func TestToken_ComparesWhole(t *testing.T) {
	b := newBench(t)
	b.addToken("gitlab", "X-Gitlab-Token", secretA)
	b.addToken("bearer", "", secretB)
	b.addToken("basic", "Authorization", "dXNlcjpwYXNzd29yZCBvZiBsZW5ndGg=")
	b.specs["basic"].Token.Prefix = "Basic "
	c := b.compile()
	id := wantCaller(t, c, delivery("{}", headers("X-Gitlab-Token", secretA)), "gitlab")
	if id.Kind != "token" || id.Key != "t" || id.Replay != "" {
		t.Errorf("identity %+v", id)
	}
	wantCaller(t, c, delivery("{}", headers("Authorization", "Bearer "+secretB)), "bearer")
	wantCaller(t, c, delivery("{}", headers("Authorization", "BEARER "+secretB)), "bearer")
	wantCaller(t, c, delivery("{}", headers("Authorization", "Basic dXNlcjpwYXNzd29yZCBvZiBsZW5ndGg=")), "basic")
	for _, value := range []string{"", secretA + " ", " " + secretA, secretA[:10], secretA + secretA, strings.ToUpper(secretA), secretB, secretA + "\x00"} {
		newRefusal(t, c, delivery("{}", headers("X-Gitlab-Token", value)), auth.Wrong)
	}
	for _, value := range []string{secretB, "Digest " + secretB, "Bearer", ""} {
		newRefusal(t, c, delivery("{}", headers("Authorization", value)), auth.Malformed)
	}
	newRefusal(t, c, delivery("{}", headers("Authorization", "Bearer "+secretA)), auth.Wrong)
	newRefusal(t, c, delivery("{}", headers("Authorization", "Bearer  "+secretB)), auth.Wrong)
	newRefusal(t, c, delivery("{}", headers("X-Gitlab-Token", secretA, "X-Gitlab-Token", secretA)), auth.Malformed)
	newRefusal(t, c, delivery("{}", headers("X-Gitlab-Token", strings.Repeat("x", 20<<10))), auth.Malformed)
}

func TestAuthorization_SharedHeader(t *testing.T) {
	b := newBench(t)
	b.addHMAC("dbt", "dbt", secretA)
	b.addJWT("ci", nil, b.writeKey("", testKeys().hs256))
	b.addToken("bearer", "", strings.Repeat("ab", 32)) // the form of a signature, but for Bearer
	c := b.compile()
	dbt := signed(t, "dbt", secretA, "{}")
	wantCaller(t, c, delivery("{}", dbt), "dbt", "bearer")
	wantCaller(t, c, bearerDelivery(signHS256(t, validClaims())), "ci", "bearer")
	wantCaller(t, c, bearerDelivery(strings.Repeat("ab", 32)), "bearer", "dbt")
	newRefusal(t, c, delivery("{}", headers("Authorization", strings.Repeat("ab", 32))), auth.Wrong)
	newRefusal(t, c, delivery("{}", headers("Authorization", dbt.Get("Authorization")[1:])), auth.Malformed)
	newRefusal(t, c, bearerDelivery("a.b.c"), auth.Malformed)
	b.addToken("dots", "", "two.dots.make-it-a-jwt")
	b.wantProblem("error callers.dots.token.keys", "two dots")
	b.specs["dots"].Token.Header = "X-Dots"
	b.compile()
}

func TestToken_InvalidHeaderValue(t *testing.T) {
	for _, text := range []string{"line one of it\nline two of it", "trailing white space   ", "not ASCII: é é é é é"} {
		b := newBench(t)
		b.addToken("a", "", text)
		b.wantProblem("error callers.a.token.keys.0: ", "no header can have")
	}
	b := newBench(t)
	b.addToken("a", "", "too short")
	b.wantProblem("error callers.a.token.keys.0: ", "at least 16")
	b = newBench(t)
	b.addToken("a", "", secretA)
	b.specs["a"].Token.Prefix = "Bearer"
	b.wantProblem("error callers.a.token.prefix")
	b = newBench(t)
	b.addToken("a", "X-A", secretA)
	b.specs["a"].Token.Prefix = "Key "
	c := b.compile()
	wantCaller(t, c, delivery("", headers("X-A", "Key "+secretA)), "a")
	newRefusal(t, c, delivery("", headers("X-A", secretA)), auth.Malformed)
}

func TestToken_SharedByCallers(t *testing.T) {
	b := newBench(t)
	b.addToken("a", "X-A", secretA)
	b.addToken("b", "X-A", secretA)
	b.wantProblem("warning callers.b.token.keys", `caller "a"`)
	c := b.compile()
	wantCaller(t, c, delivery("", headers("X-A", secretA)), "a", "a")
	wantCaller(t, c, delivery("", headers("X-A", secretA)), "b", "b")
}

func TestToken_OutsideDates(t *testing.T) {
	b := newBench(t)
	b.addToken("a", "X-A", secretA)
	b.specs["a"].Token.Keys[0].NotAfter = now().Add(-1)
	if r := newRefusal(t, b.compile(), delivery("", headers("X-A", secretA)), auth.Wrong); r.Key != "t" || r.Caller != "a" {
		t.Errorf("refusal %+v", r)
	}
}
