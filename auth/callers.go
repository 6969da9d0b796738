package auth

import (
	"crypto/sha256"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"sallyport/auth/field"
	"sallyport/auth/jwt/keyset"
	"sallyport/auth/webhook"
	"sallyport/internal/diag"
	"sallyport/internal/netid"
)

// Callers is the compiled form of all callers. It never changes, so several goroutines may use it.
type Callers struct {
	byName map[string]*caller
	all    []*caller // in the order of their names
	reads  []string  // the headers that decide; none may occur twice
	tokens []string  // the headers that hold a static token

	keySets map[keyset.Source]*keyset.Set // of issuers, which a keyset.Keeper fetches
}

type caller struct {
	name      string
	replay    string          // empty for the default of the credential
	forge     bool            // hmac is the preset of a git forge
	from      []netid.Network // nil: every address
	hmac      []hmacKey
	signature *signatureRule
	jwt       *jwtRule
	tokens    *tokenRule
	mtls      *mtlsRule
}

// Compile checks all callers and reads their keys. All errors go to p, under the caller's name. If p has an
// error, the result must not be used.
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
	if spec == nil ||
		spec.HMAC == nil && spec.Signature == nil && spec.JWT == nil && spec.MTLS == nil && spec.Token == nil {
		p.Errorf("needs a credential: hmac, signature, jwt, mtls or token")
		return c
	}
	c.replay = spec.Replay
	switch spec.Replay {
	case "", replayCheck, replayAllow, replayUntilSuccess:
	case replayRequest:
		if spec.JWT == nil {
			p.At("replay").Errorf("request is for tokens that are valid once: the caller has no jwt")
		}
	default:
		p.At("replay").Errorf("is not check, until_success, request or allow")
	}
	if c.from = spec.From; c.from != nil && len(c.from) == 0 {
		p.At("from").Errorf("lists no network, so no delivery could be accepted: list networks, or leave it out")
	}
	if spec.HMAC != nil {
		c.hmac, c.forge = compileHMAC(spec.HMAC, src, p.At("hmac")), webhook.IsForge(spec.HMAC.Scheme)
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

// warnSharedCredentials warns of credentials that two callers share.
func (c *Callers) warnSharedCredentials(p *diag.List) {
	owner := map[string]string{}
	shared := func(p *diag.List, caller string, what ...string) {
		key := digestParts(what...)
		if other, ok := owner[key]; ok && other != caller {
			p.Warnf("is the same as that of the caller %q, so the hook decides which of the two sent a delivery", other)
		} else if ok {
			p.Warnf("is listed twice")
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
				material := string(keyMaterial(s.keys[i].key.Material))
				shared(p.At("signature", "keys"), one.name, "signature", s.keys[i].id, material)
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
					p.At("token", "keys").Errorf("has a token with exactly two dots, which is read as a JWT " +
						"because a caller has jwt")
				}
			}
		}
	}
}

// warnReusedSecrets warns of secrets that serve two schemes: what is signed for one may verify as the other,
// and an attacker with a token that was seen can also sign with it.
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
			p.At(caller, kind, "keys").Warnf("is also the secret of the caller %q (%s): "+
				"use two secrets, or a delivery signed for one may be accepted for the other",
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

// SecretHeaders returns the headers that hold a secret in clear. No parameter may be taken from them.
func (c *Callers) SecretHeaders() []string { return append([]string{"Authorization"}, c.tokens...) }

// KeySets returns the key sets that a [keyset.Keeper] has to keep.
func (c *Callers) KeySets() map[keyset.Source]*keyset.Set { return c.keySets }

// Names returns the names of all callers, in order.
func (c *Callers) Names() []string { return slices.Sorted(maps.Keys(c.byName)) }

// Authenticate returns the caller that sent d. It tries the callers in hook first, but the result may be any
// caller: the code that calls this function checks whether that caller may start the hook. The kinds of
// credentials have a fixed order, from the one that is bound most closely to the body, and the first kind that
// is present decides: a correct token does not make up for a wrong signature. The error is always a *Refusal,
// and takes about the same time for every reason.
func (c *Callers) Authenticate(d *Delivery, hook []string) (*Identity, error) {
	a := &attempt{callers: c, delivery: d, hook: hook}
	id, err := a.identifyCaller()
	if err == nil {
		err = c.byName[id.Caller].checkAddress(id, d.Address)
	}
	if err != nil {
		a.spendRemainingCost()
		return nil, err
	}
	return id, nil
}

// sendsFrom reports whether an address is in the networks of the caller.
func (c *caller) sendsFrom(address netip.Addr) bool {
	return c.from == nil ||
		slices.ContainsFunc(c.from, func(n netid.Network) bool { return n.Contains(address) })
}

// checkAddress refuses a verified credential that came from an address outside the networks of the caller.
func (c *caller) checkAddress(id *Identity, address netip.Addr) error {
	if c.sendsFrom(address) {
		return nil
	}
	return &Refusal{
		Reason: Misplaced, Kind: id.Kind, Caller: c.name, Key: id.Key,
		Detail: fmt.Sprintf("it came from %s, which is not in the networks (from) of the caller %s", address, c.name),
	}
}

// candidates yields the hook's callers and then all others, and whether the hook lists each.
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
