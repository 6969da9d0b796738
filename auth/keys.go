package auth

import (
	"time"

	"sallyport/internal/diag"
)

// expiresSoon is how long before the expiry of a key its operator is warned.
const expiresSoon = 14 * 24 * time.Hour

// KeyInfo describes a key without its bytes.
type KeyInfo struct {
	Caller    string
	Kind      string    // hmac, signature, jwt or token
	ID        string    // as in Identity.Key
	NotBefore time.Time // zero for always
	NotAfter  time.Time // zero for never
}

// Keys returns the keys of all callers, in the order of the callers. Keys that are fetched are not among them.
func (c *Callers) Keys() (keys []KeyInfo) {
	for _, one := range c.all {
		add := func(kind string, k *keyInfo) {
			keys = append(keys, KeyInfo{one.name, kind, k.id, k.notBefore, k.notAfter})
		}
		for i := range one.hmac {
			add("hmac", &one.hmac[i].keyInfo)
		}
		if one.signature != nil {
			for i := range one.signature.keys {
				add("signature", &one.signature.keys[i].keyInfo)
			}
		}
		if one.jwt != nil {
			for i := range one.jwt.keys {
				add("jwt", &one.jwt.keys[i].keyInfo)
			}
		}
		if one.tokens != nil {
			for i := range one.tokens.keys {
				add("token", &one.tokens.keys[i].keyInfo)
			}
		}
	}
	return keys
}

// warnExpiringKeys warns of keys that expire soon or have expired, and of a caller without a valid key. Only
// keys with a date in the file expire.
func (spec *CallerSpec) warnExpiringKeys(now time.Time, p *diag.List) {
	if now.IsZero() {
		return
	}
	// The dates of a client certificate or a key set are not in the file.
	valid := spec.MTLS != nil || spec.JWT != nil && (spec.JWT.JWKS != "" || len(spec.JWT.Keys) == 0)
	listed := false
	for credential, keys := range spec.keysByKind() {
		for i := range keys {
			k, at := &keys[i], p.At(credential, "keys").Index(i).At("not_after")
			listed = true
			switch left := k.NotAfter.Sub(now); {
			case k.NotAfter.IsZero() || left > expiresSoon:
			case left < 0:
				at.Warnf("has passed, so the key is refused")
			default:
				at.Warnf("is in less than %d days: make a new key", int(left/(24*time.Hour))+1)
			}
			valid = valid || (&keyInfo{notBefore: k.NotBefore, notAfter: k.NotAfter}).checkDates(now) == ""
		}
	}
	if listed && !valid {
		p.Warnf("has no key that is valid now")
	}
}

// keysByKind returns the keys that the file lists for each kind of credential.
func (spec *CallerSpec) keysByKind() map[string][]KeySpec {
	all := map[string][]KeySpec{}
	if spec.HMAC != nil {
		all["hmac"] = spec.HMAC.Keys
	}
	if spec.Signature != nil {
		all["signature"] = spec.Signature.Keys
	}
	if spec.JWT != nil {
		all["jwt"] = spec.JWT.Keys
	}
	if spec.Token != nil {
		all["token"] = spec.Token.Keys
	}
	return all
}
