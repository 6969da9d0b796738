package auth

import (
	"cmp"
	"crypto/sha256"
	"crypto/subtle"
	"strings"

	"sallyport/auth/field"
	"sallyport/internal/diag"
)

type tokenRule struct {
	header, prefix string
	keys           []tokenKey
}

type tokenKey struct {
	keyInfo
	digest       [32]byte // compared instead of the token, so that the time does not depend on its length
	looksLikeJWT bool
}

func compileToken(spec *TokenSpec, src Sources, p *diag.List) *tokenRule {
	header := field.CompileHeader(cmp.Or(spec.Header, "Authorization"), p.At("header"))
	t := &tokenRule{header: header, prefix: spec.Prefix}
	if t.header == "Authorization" {
		t.prefix = cmp.Or(t.prefix, "Bearer ")
		if !strings.HasSuffix(t.prefix, " ") {
			p.At("prefix").Errorf("must end in a space, like every scheme of Authorization")
		}
	}
	if len(spec.Keys) == 0 {
		p.At("keys").Errorf("needs at least one key")
	}
	compileEachKey(spec.Keys, p, func(k *KeySpec, info keyInfo, p *diag.List) {
		text, ok := src.loadSecret(k, p)
		if !ok || !checkSecretLength(len(text), p) {
			return
		}
		if !isHeaderValue(string(text)) {
			p.Errorf("has characters that no header can have: write printable ASCII, and no space at the end")
		}
		info.secret = sha256.Sum256(text)
		t.keys = append(t.keys, tokenKey{info, sha256.Sum256(text), strings.Count(string(text), ".") == 2})
	})
	return t
}

func isHeaderValue(s string) bool {
	return strings.TrimSpace(s) == s && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

// authenticateToken compares the value of each header that holds tokens with every key.
func (a *attempt) authenticateToken() (*Identity, error) {
	refusal := errAbsent
	for _, header := range a.callers.tokens {
		if len(a.delivery.Header[header]) == 0 {
			continue
		}
		owner, key, ok := a.findToken(header, a.delivery.Header.Get(header))
		switch {
		case key != nil:
			return owner.identifyByToken(key, a.delivery)
		case ok:
			refusal = newRefusal(Wrong, "token", "the token in %s is not that of any caller", header)
		default:
			refusal = newRefusal(Malformed, "token", "the header %s does not begin as any caller's token", header)
		}
	}
	return nil, refusal
}

// findToken returns the caller and the key that the value is, or nil, and whether the value has the form of a
// token. It compares every key, so its time does not depend on which one matches.
func (a *attempt) findToken(header, value string) (owner *caller, key *tokenKey, formed bool) {
	for one := range a.callers.candidates(a.hook) {
		if one.tokens == nil || one.tokens.header != header {
			continue
		}
		text, ok := field.CutPrefix(value, one.tokens.prefix)
		if !ok {
			continue
		}
		formed = true
		got := sha256.Sum256([]byte(text))
		for i := range one.tokens.keys {
			k := &one.tokens.keys[i]
			if subtle.ConstantTimeCompare(got[:], k.digest[:]) == 1 && key == nil {
				owner, key = one, k
			}
		}
	}
	return owner, key, formed
}

func (c *caller) identifyByToken(k *tokenKey, d *Delivery) (*Identity, error) {
	if detail := k.checkDates(d.Now); detail != "" {
		return nil, &Refusal{Reason: Wrong, Kind: "token", Caller: c.name, Key: k.id, Detail: detail}
	}
	return c.identifyUnsigned("token", k.id, d), nil
}

// identifyUnsigned returns the identity for a credential that does not cover the body.
func (c *caller) identifyUnsigned(kind, key string, d *Delivery) *Identity {
	id := &Identity{Caller: c.name, Kind: kind, Key: key, BodyDigest: sha256.Sum256(d.Body)}
	if c.recognizesReplays(id) {
		c.nameUnsignedDelivery(id, d)
	}
	return id
}
