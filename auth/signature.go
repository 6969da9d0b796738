package auth

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"time"

	"sallyport/auth/field"
	"sallyport/internal/diag"
)

// The algorithms of RFC 9421 3.3 that are taken here: those with one hash and
// one kind of key.
const (
	algHMAC    = "hmac-sha256"
	algEd25519 = "ed25519"
	algP256    = "ecdsa-p256-sha256"
)

const (
	maxSignatureSkew = 30 * time.Second // that a sender's clock may be ahead
	maxForeignKeys   = 16               // of callers that may not call the hook anyway, as foreignWork has it
)

// signatureRule is what a caller's message signatures must be.
type signatureRule struct {
	authority  []string // normalized
	components []string
	tag        string
	maxAge     time.Duration
	keys       []signatureKey
}

// signatureKey is a key with the one algorithm it is for (RFC 9421 7.3.6). Its
// id is the keyid.
type signatureKey struct {
	keyInfo
	alg string
	key any // []byte, ed25519.PublicKey or *ecdsa.PublicKey
}

func compileSignature(spec *SignatureSpec, src Sources, p *diag.List) *signatureRule {
	s := &signatureRule{components: spec.Components, tag: spec.Tag, maxAge: spec.MaxAge}
	if len(spec.Authority) == 0 {
		p.At("authority").Errorf("is missing: without it, a delivery that was signed for another server would do here")
	}
	for i, a := range spec.Authority {
		if u, err := url.Parse("https://" + a); err != nil || a == "" || u.Host != a {
			p.At("authority").Index(i).Errorf("%q is no host or host:port", a)
		}
		s.authority = append(s.authority, normalAuthority(a))
	}
	for i, name := range spec.Components {
		if !isComponent(name) {
			p.At("components").Index(i).Errorf("%q is no header in lower case, and none of %s", name, strings.Join(derivedComponents(), ", "))
		}
	}
	if spec.Tag != "" && !field.IsPrintable(spec.Tag) {
		p.At("tag").Errorf("is not short, visible ASCII")
	}
	if s.maxAge == 0 {
		s.maxAge = 5 * time.Minute
	}
	if s.maxAge < 0 || s.maxAge > maxLifetime {
		p.At("max_age").Errorf("is not between 0 and %s", maxLifetime)
	}
	if len(spec.Keys) == 0 {
		p.At("keys").Errorf("needs at least one key")
	}
	eachKey(spec.Keys, p, func(k *KeySpec, info keyInfo, p *diag.List) {
		if !info.named || !field.IsPrintable(info.id) {
			p.Errorf("needs an id of short, visible ASCII, for that is the keyid by which a signature names its key")
		}
		if key, alg, ok := loadSignatureKey(k, src, p); ok {
			if secret, ok := key.([]byte); ok {
				info.secret = sha256.Sum256(secret)
			}
			s.keys = append(s.keys, signatureKey{info, alg, key})
		}
	})
	return s
}

func loadSignatureKey(k *KeySpec, src Sources, p *diag.List) (key any, alg string, ok bool) {
	public, secret, ok := src.publicOrSecret(k, p)
	if !ok {
		return nil, "", false
	}
	key = public
	switch public := public.(type) {
	case nil:
		key, alg, ok = secret, algHMAC, checkLength(len(secret), p)
	case ed25519.PublicKey:
		alg = algEd25519
	case *ecdsa.PublicKey:
		if public.Params().Name == "P-256" {
			alg = algP256
		}
	}
	switch {
	case alg == "":
		p.Errorf("is not an Ed25519 or P-256 key")
		return nil, "", false
	case k.Alg != "" && k.Alg != alg:
		p.At("alg").Errorf("is %q, but this is a key for %s", k.Alg, alg)
		return nil, "", false
	}
	return key, alg, ok
}

// bySignature verifies an HTTP message signature (RFC 9421 3.2). There must be
// one and no more: with several, which of them was meant is a guess (7.2.6).
func (c *Callers) bySignature(d *Delivery, hook []string) (*Identity, error) {
	if len(d.Header["Signature-Input"]) == 0 || !slices.ContainsFunc(c.all, func(one *caller) bool { return one.signature != nil }) {
		return nil, errAbsent
	}
	m, err := readMessage(d)
	if err != nil {
		return nil, refuse(Malformed, "signature", "the message signature %v", err)
	}
	refusal := refuse(Wrong, "signature", "the keyid of the message signature is that of no key")
	foreign := 0
	for one, own := range c.candidates(hook) {
		k := one.signature.key(m.keyID)
		if k == nil {
			continue
		}
		if !own {
			if foreign++; foreign > maxForeignKeys {
				break
			}
		}
		done := cost{passes: 2, checks: 1}.bytes(len(d.Body))
		switch {
		case m.alg != "" && m.alg != k.alg:
			refusal = refuse(Wrong, "signature", "the alg of the message signature is not that of the key")
		case !k.verifies(m.base, m.signature):
			refusal = refuse(Wrong, "signature", "the message signature does not verify with the key of its keyid")
			refusal.work = cost{checks: 1}.bytes(0)
		default:
			id, err := one.wrote(k, m, d)
			return id, withWork(err, done)
		}
	}
	return nil, refusal
}

func (s *signatureRule) key(id string) *signatureKey {
	if s == nil {
		return nil
	}
	i := slices.IndexFunc(s.keys, func(k signatureKey) bool { return k.id == id })
	if i < 0 {
		return nil
	}
	return &s.keys[i]
}

// verifies is RFC 9421 3.3.3 to 3.3.6.
func (k *signatureKey) verifies(base, signature []byte) bool {
	switch key := k.key.(type) {
	case []byte:
		return hmac.Equal(hmacSHA256(key, base), signature)
	case ed25519.PublicKey:
		return ed25519.Verify(key, base, signature)
	case *ecdsa.PublicKey:
		if len(signature) != 64 { // r and s, each of 32 bytes (3.3.4)
			return false
		}
		sum := sha256.Sum256(base)
		return ecdsa.Verify(key, sum[:], new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:]))
	}
	return false
}

func hmacSHA256(key, message []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(message)
	return mac.Sum(nil)
}

// wrote is what a verified message signature proves, if it covers enough, for
// this server, and is fresh.
func (c *caller) wrote(k *signatureKey, m *message, d *Delivery) (*Identity, error) {
	r := &Refusal{Reason: Wrong, Scheme: "signature", Caller: c.name, Key: k.id}
	s := c.signature
	if r.Detail = k.outside(d.Now); r.Detail != "" {
		return nil, r
	}
	if r.Detail = s.lacks(m, d); r.Detail != "" {
		return nil, r
	}
	if !slices.Contains(s.authority, normalAuthority(d.Authority)) {
		r.Detail = "it was signed for another server: the authority is none of the caller's"
		return nil, r
	}
	if m.tag != s.tag {
		r.Detail = "it was signed for another use: its tag is not the caller's"
		return nil, r
	}
	err := field.CheckAge(m.created, d.Now, s.maxAge, maxSignatureSkew)
	if err == nil && m.expires && d.Now.After(m.expiry) {
		err = field.StaleError("its expires has passed")
	}
	if err != nil {
		r.Reason, r.Detail = Stale, err.Error()
		return nil, r
	}
	id := &Identity{Caller: c.name, Scheme: "signature", Key: k.id, BodyDigest: sha256.Sum256(d.Body)}
	if c.replayCheck("signature") {
		k.nameMessage(id, m)
	}
	return id, nil
}

// lacks says what the signature must cover and does not (RFC 9421 7.2.1): what
// is asked of which server, and all by which the body is read.
func (s *signatureRule) lacks(m *message, d *Delivery) string {
	need := append([]string{"@method"}, s.components...)
	if !slices.Contains(m.components, "@target-uri") {
		need = append(need, "@authority", "@path", "@query")
	}
	if len(d.Body) > 0 {
		need = append(need, "content-type", "content-digest")
	}
	for _, name := range need {
		if !slices.Contains(m.components, name) {
			return "it does not cover " + name
		}
	}
	if slices.Contains(m.components, "content-digest") {
		if err := checkDigest(d.Header.Get("Content-Digest"), d.Body); err != nil {
			return "the Content-Digest " + err.Error()
		}
	}
	return ""
}
