package auth

import (
	"crypto/sha256"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"sallyport/auth/field"
	"sallyport/auth/httpsig"
	"sallyport/internal/diag"
)

const maxForeignKeys = 16 // of callers that may not call the hook anyway, as foreignWork for hmac

// signatureRule is what a caller requires of its message signatures.
type signatureRule struct {
	authority  []string // normalized
	components []string
	tag        string
	maxAge     time.Duration
	keys       []signatureKey
}

// signatureKey is a key. Its id is the keyid.
type signatureKey struct {
	keyInfo
	key *httpsig.Key
}

func compileSignature(spec *SignatureSpec, src Sources, p *diag.List) *signatureRule {
	s := &signatureRule{components: spec.Components, tag: spec.Tag, maxAge: spec.MaxAge}
	if len(spec.Authority) == 0 {
		p.At("authority").Errorf("is missing: " +
			"without it, a delivery that was signed for another server would be accepted")
	}
	for i, a := range spec.Authority {
		if u, err := url.Parse("https://" + a); err != nil || a == "" || u.Host != a {
			p.At("authority").Index(i).Errorf("%q is not a host or host:port", a)
		}
		s.authority = append(s.authority, httpsig.NormalizeAuthority(a))
	}
	for i, name := range spec.Components {
		if !httpsig.IsComponent(name) {
			known := strings.Join(httpsig.DerivedComponents(), ", ")
			p.At("components").Index(i).Errorf("%q is neither a header in lower case nor one of %s", name, known)
		}
	}
	if spec.Tag != "" && !field.IsPrintable(spec.Tag) {
		p.At("tag").Errorf("is not short printable ASCII")
	}
	if s.maxAge == 0 {
		s.maxAge = 5 * time.Minute
	}
	if s.maxAge < 0 || s.maxAge > httpsig.MaxAge {
		p.At("max_age").Errorf("is not between 0 and %s", httpsig.MaxAge)
	}
	if len(spec.Keys) == 0 {
		p.At("keys").Errorf("needs at least one key")
	}
	compileEachKey(spec.Keys, p, func(k *KeySpec, info keyInfo, p *diag.List) {
		if !info.named || !field.IsPrintable(info.id) {
			p.Errorf("needs an id of short printable ASCII: signatures name their key by it, as keyid")
		}
		if key := loadSignatureKey(k, src, p); key != nil {
			if secret, ok := key.Material.([]byte); ok {
				info.secret = sha256.Sum256(secret)
			}
			s.keys = append(s.keys, signatureKey{info, key})
		}
	})
	return s
}

// loadSignatureKey returns nil for a key that cannot be used.
func loadSignatureKey(k *KeySpec, src Sources, p *diag.List) *httpsig.Key {
	public, secret, ok := src.loadPublicOrSecret(k, p)
	if !ok {
		return nil
	}
	material := public
	if public == nil {
		material, ok = secret, checkSecretLength(len(secret), p)
	}
	key, err := httpsig.NewKey(material)
	switch {
	case err != nil:
		p.Errorf("%v", err)
		return nil
	case k.Alg != "" && k.Alg != key.Alg:
		p.At("alg").Errorf("is %q, but this is a key for %s", k.Alg, key.Alg)
		return nil
	case !ok:
		return nil
	}
	return key
}

// authenticateSignature verifies an HTTP message signature (RFC 9421 3.2). There must be exactly one: with
// several, it is not clear which of them the sender means (7.2.6).
func (a *attempt) authenticateSignature() (*Identity, error) {
	hasSignature := func(one *caller) bool { return one.signature != nil }
	if len(a.delivery.Header["Signature-Input"]) == 0 || !slices.ContainsFunc(a.callers.all, hasSignature) {
		return nil, errAbsent
	}
	m, err := httpsig.Read(a.delivery.signedRequest())
	if err != nil {
		return nil, newRefusal(Malformed, "signature", "the message signature %v", err)
	}
	refusal := newRefusal(Wrong, "signature", "no key has the keyid of the message signature")
	foreign := 0
	for one, own := range a.callers.candidates(a.hook) {
		k := one.signature.findKey(m.KeyID)
		if k == nil {
			continue
		}
		if !own {
			if foreign++; foreign > maxForeignKeys {
				break
			}
		}
		switch {
		case m.Alg != "" && m.Alg != k.key.Alg:
			refusal = newRefusal(Wrong, "signature", "the alg of the message signature is not that of its key")
		case !k.key.Verify(m.Base, m.Signature):
			refusal = newRefusal(Wrong, "signature", "the message signature does not verify with the key of its keyid")
			a.spent = cost{checks: 1}.bytesHashed(0)
		default:
			a.spent = cost{passes: 2, checks: 1}.bytesHashed(len(a.delivery.Body))
			return one.identifyBySignature(k, m, a.delivery)
		}
	}
	return nil, refusal
}

func (s *signatureRule) findKey(id string) *signatureKey {
	if s == nil {
		return nil
	}
	i := slices.IndexFunc(s.keys, func(k signatureKey) bool { return k.id == id })
	if i < 0 {
		return nil
	}
	return &s.keys[i]
}

// identifyBySignature returns what a verified message signature proves, if it covers enough, is for this
// server, and is fresh.
func (c *caller) identifyBySignature(k *signatureKey, m *httpsig.Message, d *Delivery) (*Identity, error) {
	r := &Refusal{Reason: Wrong, Kind: "signature", Caller: c.name, Key: k.id}
	s := c.signature
	if r.Detail = k.checkDates(d.Now); r.Detail != "" {
		return nil, r
	}
	if err := m.CheckCoverage(d.signedRequest(), s.components); err != nil {
		r.Detail = err.Error()
		return nil, r
	}
	if !slices.Contains(s.authority, httpsig.NormalizeAuthority(d.Authority)) {
		r.Detail = fmt.Sprintf("signed for authority %.80q; the caller allows %q", d.Authority, s.authority)
		return nil, r
	}
	if m.Tag != s.tag {
		r.Detail = "signed for another use: its tag is not the one that the caller requires"
		return nil, r
	}
	if err := m.CheckTime(d.Now, s.maxAge); err != nil {
		r.Reason, r.Detail = Stale, err.Error()
		return nil, r
	}
	id := &Identity{Caller: c.name, Kind: "signature", Key: k.id, BodyDigest: sha256.Sum256(d.Body)}
	if c.recognizesReplays(id) {
		k.nameSignedRequest(id, m)
	}
	return id, nil
}
