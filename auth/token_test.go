package auth_test

import (
	"strings"
	"testing"

	"sallyport/auth"
)

func TestAStaticTokenIsComparedWhole(t *testing.T) {
	b := newBench(t)
	b.token("gitlab", "X-Gitlab-Token", secretA)
	b.token("bearer", "", secretB)
	b.token("basic", "Authorization", "dXNlcjpwYXNzd29yZCBvZiBsZW5ndGg=")
	b.specs["basic"].Token.Prefix = "Basic "
	c := b.compile()
	id := allow(t, c, delivery("{}", headers("X-Gitlab-Token", secretA)), "gitlab")
	if id.Scheme != "token" || id.Key != "t" || id.Replay != "" {
		t.Errorf("identity %+v", id)
	}
	allow(t, c, delivery("{}", headers("Authorization", "Bearer "+secretB)), "bearer")
	allow(t, c, delivery("{}", headers("Authorization", "BEARER "+secretB)), "bearer")
	allow(t, c, delivery("{}", headers("Authorization", "Basic dXNlcjpwYXNzd29yZCBvZiBsZW5ndGg=")), "basic")
	for _, value := range []string{"", secretA + " ", " " + secretA, secretA[:10], secretA + secretA, strings.ToUpper(secretA), secretB, secretA + "\x00"} {
		refuse(t, c, delivery("{}", headers("X-Gitlab-Token", value)), auth.Wrong)
	}
	for _, value := range []string{secretB, "Digest " + secretB, "Bearer", ""} {
		refuse(t, c, delivery("{}", headers("Authorization", value)), auth.Malformed)
	}
	refuse(t, c, delivery("{}", headers("Authorization", "Bearer "+secretA)), auth.Wrong)
	refuse(t, c, delivery("{}", headers("Authorization", "Bearer  "+secretB)), auth.Wrong)
	refuse(t, c, delivery("{}", headers("X-Gitlab-Token", secretA, "X-Gitlab-Token", secretA)), auth.Malformed)
	refuse(t, c, delivery("{}", headers("X-Gitlab-Token", strings.Repeat("x", 20<<10))), auth.Malformed)
}

func TestDbtJWTAndBearerShareOneHeader(t *testing.T) {
	b := newBench(t)
	b.hmac("dbt", "dbt", secretA)
	b.jwt("ci", nil, b.key("", ring().hs256))
	b.token("bearer", "", strings.Repeat("ab", 32)) // the form of a signature, but for Bearer
	c := b.compile()
	dbt := signed(t, "dbt", secretA, "{}")
	allow(t, c, delivery("{}", dbt), "dbt", "bearer")
	allow(t, c, bearing(hs(t, claims())), "ci", "bearer")
	allow(t, c, bearing(strings.Repeat("ab", 32)), "bearer", "dbt")
	refuse(t, c, delivery("{}", headers("Authorization", strings.Repeat("ab", 32))), auth.Wrong)
	refuse(t, c, delivery("{}", headers("Authorization", dbt.Get("Authorization")[1:])), auth.Malformed)
	refuse(t, c, bearing("a.b.c"), auth.Malformed)
	b.token("dots", "", "two.dots.make-it-a-jwt")
	b.wantProblem("error callers.dots.token.keys", "two dots")
	b.specs["dots"].Token.Header = "X-Dots"
	b.compile()
}

func TestATokenThatNoHeaderCanCarryStopsTheStart(t *testing.T) {
	for _, text := range []string{"line one of it\nline two of it", "trailing white space   ", "not ASCII: é é é é é"} {
		b := newBench(t)
		b.token("a", "", text)
		b.wantProblem("error callers.a.token.keys.0: ", "no header can carry")
	}
	b := newBench(t)
	b.token("a", "", "too short")
	b.wantProblem("error callers.a.token.keys.0: ", "at least 16")
	b = newBench(t)
	b.token("a", "", secretA)
	b.specs["a"].Token.Prefix = "Bearer"
	b.wantProblem("error callers.a.token.prefix")
	b = newBench(t)
	b.token("a", "X-A", secretA)
	b.specs["a"].Token.Prefix = "Key "
	c := b.compile()
	allow(t, c, delivery("", headers("X-A", "Key "+secretA)), "a")
	refuse(t, c, delivery("", headers("X-A", secretA)), auth.Malformed)
}

func TestASharedTokenIsTheHooksCallers(t *testing.T) {
	b := newBench(t)
	b.token("a", "X-A", secretA)
	b.token("b", "X-A", secretA)
	b.wantProblem("warning callers.b.token.keys", `caller "a"`)
	c := b.compile()
	allow(t, c, delivery("", headers("X-A", secretA)), "a", "a")
	allow(t, c, delivery("", headers("X-A", secretA)), "b", "b")
}

func TestATokenOutsideItsDatesIsRefused(t *testing.T) {
	b := newBench(t)
	b.token("a", "X-A", secretA)
	b.specs["a"].Token.Keys[0].NotAfter = now().Add(-1)
	if r := refuse(t, b.compile(), delivery("", headers("X-A", secretA)), auth.Wrong); r.Key != "t" || r.Caller != "a" {
		t.Errorf("refusal %+v", r)
	}
}
