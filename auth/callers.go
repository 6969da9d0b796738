package auth

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"

	"sallyport/auth/field"
	"sallyport/auth/jwt/keyset"
	"sallyport/internal/diag"
)

// maxHeader bounds the header fields that are read here.
const maxHeader = 16 << 10

// errAbsent says that a credential of some kind is not on the delivery, so that
// the next may be looked for. Every other error is final.
var errAbsent = errors.New("absent")

// Callers is the compiled form of all callers. It is never changed, and safe
// for use by many at once.
type Callers struct {
	byName map[string]*caller
	all    []*caller // in the order of their names
	reads  []string  // the headers that decide; none may be there twice
	tokens []string  // the headers that hold a static token

	keySets map[keyset.Source]*keyset.Set // that are fetched
}

type caller struct {
	name      string
	replay    string // check, allow, or empty for the default of the credential
	hmac      []hmacKey
	signature *signatureRule
	jwt       *jwtRule
	tokens    *tokenRule
	mtls      *mtlsRule
}

// Compile checks all callers and reads their keys. Everything that is wrong
// goes to p, under the caller's name; if p is bad, the result must not be used.
func Compile(specs map[string]*CallerSpec, src Sources, p *diag.List) *Callers {
	c := &Callers{byName: map[string]*caller{}, keySets: map[keyset.Source]*keyset.Set{}}
	src.made = c.keySets
	for _, name := range slices.Sorted(maps.Keys(specs)) {
		one := compileCaller(name, specs[name], src, p.At(name))
		c.byName[name] = one
		c.all = append(c.all, one)
	}
	c.collectHeaders()
	c.warnSharedCredentials(p)
	c.warnReusedSecrets(p)
	return c
}

func compileCaller(name string, spec *CallerSpec, src Sources, p *diag.List) *caller {
	c := &caller{name: name}
	if spec == nil || spec.HMAC == nil && spec.Signature == nil && spec.JWT == nil && spec.MTLS == nil && spec.Token == nil {
		p.Errorf("needs a credential: hmac, signature, jwt, mtls or token")
		return c
	}
	c.replay = spec.Replay
	if c.replay != "" && c.replay != "check" && c.replay != "allow" {
		p.At("replay").Errorf("is not check or allow")
	}
	if spec.HMAC != nil {
		c.hmac = compileHMAC(spec.HMAC, src, p.At("hmac"))
	}
	if spec.Signature != nil {
		c.signature = compileSignature(spec.Signature, src, p.At("signature"))
	}
	if spec.JWT != nil {
		c.jwt = compileJWT(spec.JWT, src, p.At("jwt"))
	}
	if spec.Token != nil {
		c.tokens = compileToken(spec.Token, src, p.At("token"))
	}
	spec.warnExpiringKeys(src.Now, p)
	if spec.MTLS != nil {
		c.mtls = compileMTLS(spec.MTLS, src.Clients, p.At("mtls"))
	}
	return c
}

func (c *Callers) collectHeaders() {
	for _, one := range c.all {
		for i := range one.hmac {
			c.reads = append(c.reads, one.hmac[i].key.Headers()...)
		}
		if one.signature != nil {
			c.reads = append(c.reads, "Signature-Input", "Signature", "Content-Digest")
		}
		if one.jwt != nil {
			c.reads = append(c.reads, "Authorization")
		}
		if one.tokens != nil {
			c.tokens = append(c.tokens, one.tokens.header)
		}
	}
	slices.Sort(c.tokens)
	c.tokens = slices.Compact(c.tokens)
	c.reads = append(c.reads, c.tokens...)
	slices.Sort(c.reads)
	c.reads = slices.Compact(c.reads)
}

// warnSharedCredentials looks for credentials that would not tell one caller from another.
func (c *Callers) warnSharedCredentials(p *diag.List) {
	owner := map[string]string{}
	shared := func(p *diag.List, caller string, what ...string) {
		key := digestParts(what...)
		if other, ok := owner[key]; ok && other != caller {
			p.Warnf("is the same as that of the caller %q, so which of the two a delivery is from depends on the hook", other)
		} else if ok {
			p.Warnf("is there twice")
		}
		owner[key] = caller
	}
	jwts := slices.ContainsFunc(c.all, func(one *caller) bool { return one.jwt != nil })
	for _, one := range c.all {
		p := p.At(one.name)
		for i := range one.hmac {
			k := &one.hmac[i]
			shared(p.At("hmac", "keys"), one.name, "hmac", k.key.Header(), string(k.key.Bytes))
		}
		if s := one.signature; s != nil {
			for i := range s.keys {
				shared(p.At("signature", "keys"), one.name, "signature", s.keys[i].id, string(keyMaterial(s.keys[i].key.Material)))
			}
		}
		if m := one.mtls; m != nil {
			for _, name := range m.spec.certificateNames() {
				shared(p.At("mtls"), one.name, "mtls", m.spec.CA, name.kind, name.text)
			}
		}
		if t := one.tokens; t != nil {
			for i := range t.keys {
				shared(p.At("token", "keys"), one.name, "token", t.header, string(t.keys[i].digest[:]))
				if _, bearer := field.CutPrefix(t.prefix, "Bearer "); jwts && t.keys[i].looksLikeJWT && bearer {
					p.At("token", "keys").Errorf("holds a token with exactly two dots, which is read as a JWT here")
				}
			}
		}
	}
}

// warnReusedSecrets looks for secrets that serve two schemes: what is signed for one may
// verify as the other, and a token that somebody saw signs as well.
func (c *Callers) warnReusedSecrets(p *diag.List) {
	type use struct{ caller, scheme string }
	first := map[[sha256.Size]byte]use{}
	note := func(caller, kind, scheme string, k *keyInfo) {
		if k.secret == ([sha256.Size]byte{}) {
			return
		}
		now := use{caller, scheme}
		switch before, ok := first[k.secret]; {
		case !ok:
			first[k.secret] = now
		case before.scheme != scheme:
			p.At(caller, kind, "keys").Warnf("has the secret of the caller %q (%s), too: give each its own, or what is sent for one may pass as the other",
				before.caller, before.scheme)
		}
	}
	for _, one := range c.all {
		for i := range one.hmac {
			note(one.name, "hmac", "hmac with "+one.hmac[i].key.Header(), &one.hmac[i].keyInfo)
		}
		if one.signature != nil {
			for i := range one.signature.keys {
				note(one.name, "signature", "signature", &one.signature.keys[i].keyInfo)
			}
		}
		if one.jwt != nil {
			for i := range one.jwt.keys {
				note(one.name, "jwt", "jwt", &one.jwt.keys[i].keyInfo)
			}
		}
		if one.tokens != nil {
			for i := range one.tokens.keys {
				note(one.name, "token", "token in "+one.tokens.header, &one.tokens.keys[i].keyInfo)
			}
		}
	}
}

// SecretHeaders returns the headers in which a secret stands as it is, so that
// nobody takes a parameter from them.
func (c *Callers) SecretHeaders() []string { return append([]string{"Authorization"}, c.tokens...) }

// KeySets returns the key sets that a keyset.Keeper has to keep.
func (c *Callers) KeySets() map[keyset.Source]*keyset.Set { return c.keySets }

// Names returns the names of all callers, in order.
func (c *Callers) Names() []string { return slices.Sorted(maps.Keys(c.byName)) }

// Authenticate tells who sent d. The names in hook are tried first, but every
// caller may be the answer: whether it may call the hook is for the caller of
// this function to judge. Kinds of credentials are looked for in a fixed order,
// the strongest binding to the body first, and the first kind that is present
// decides: a wrong signature is never made good by a right token. The error is
// always a *Refusal, and takes about as long whatever is wrong.
func (c *Callers) Authenticate(d *Delivery, hook []string) (*Identity, error) {
	id, err := c.identifyCaller(d, hook)
	var r *Refusal
	if errors.As(err, &r) {
		c.spendRemainingCost(d, hook, r.spent)
	}
	return id, err
}

func (c *Callers) identifyCaller(d *Delivery, hook []string) (*Identity, error) {
	for _, name := range c.reads {
		values := d.Header[name]
		if len(values) > 1 {
			return nil, newRefusal(Malformed, "", "the header %s is there %d times", name, len(values))
		}
		if len(values) == 1 && len(values[0]) > maxHeader {
			return nil, newRefusal(Malformed, "", "the header %s is over %d bytes", name, maxHeader)
		}
	}
	for _, kind := range []func(*Delivery, []string) (*Identity, error){c.authenticateSignature, c.authenticateHMAC, c.authenticateJWT, c.refuseOtherSchemes, c.authenticateToken, c.authenticateMTLS} {
		if id, err := kind(d, hook); !errors.Is(err, errAbsent) {
			return id, err
		}
	}
	return nil, newRefusal(Absent, "", "the delivery has no credential that any caller could have sent")
}

// refuseOtherSchemes refuses an Authorization header that some caller's credential could
// stand in, but that has the form of none: what is left are tokens.
func (c *Callers) refuseOtherSchemes(d *Delivery, _ []string) (*Identity, error) {
	token := func(one *caller) bool {
		if one.tokens == nil || one.tokens.header != "Authorization" {
			return false
		}
		_, ok := field.CutPrefix(d.Header.Get("Authorization"), one.tokens.prefix)
		return ok
	}
	if len(d.Header["Authorization"]) == 0 || !slices.Contains(c.reads, "Authorization") || slices.ContainsFunc(c.all, token) {
		return nil, errAbsent
	}
	return nil, newRefusal(Malformed, "", "the Authorization header has the form of no caller's credential")
}

// candidates yields the hook's callers and then all others, and whether each is
// on the hook.
func (c *Callers) candidates(hook []string) iter.Seq2[*caller, bool] {
	return func(yield func(*caller, bool) bool) {
		for _, name := range hook {
			if one := c.byName[name]; one != nil && !yield(one, true) {
				return
			}
		}
		for _, one := range c.all {
			if !slices.Contains(hook, one.name) && !yield(one, false) {
				return
			}
		}
	}
}

func (c *caller) checksReplay(scheme string) bool {
	if c.replay != "" {
		return c.replay == "check"
	}
	return scheme == "hmac" || scheme == "signature" || scheme == "jwt"
}

// reasonOrStale returns Stale for an error that says so, and otherwise the reason.
func reasonOrStale(reason Reason, err error) Reason {
	if stale := field.StaleError(""); errors.As(err, &stale) {
		return Stale
	}
	return reason
}

func newRefusal(reason Reason, scheme, format string, a ...any) *Refusal {
	return &Refusal{Reason: reason, Kind: scheme, Detail: fmt.Sprintf(format, a...)}
}
