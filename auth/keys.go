package auth

import (
	"time"

	"sallyport/internal/diag"
)

// endsSoon is how long before the end of a key its operator is warned.
const expiresSoon = 14 * 24 * time.Hour

// KeyInfo is what is known of a key but its bytes.
type KeyInfo struct {
	Caller    string
	Kind      string    // hmac, signature, jwt or token
	ID        string    // as in Identity.Key
	NotBefore time.Time // zero for always
	NotAfter  time.Time // zero for never
}

// Keys returns the keys of all callers that are in the file, or in files that
// it names, by caller.
func (c *Callers) Keys() (keys []KeyInfo) {
	for _, one := range c.all {
		add := func(scheme string, k *keyInfo) {
			keys = append(keys, KeyInfo{one.name, scheme, k.id, k.notBefore, k.notAfter})
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

// warnExpiringKeys tells of keys that end soon or have ended, and of a caller that has
// none left. Only what the file dates can end.
func (spec *CallerSpec) warnExpiringKeys(now time.Time, p *diag.List) {
	if now.IsZero() {
		return
	}
	// A client certificate or a key set has dates of its own, or none.
	valid := spec.MTLS != nil || spec.JWT != nil && (spec.JWT.JWKS != "" || len(spec.JWT.Keys) == 0)
	listed := false
	for credential, keys := range spec.keysByKind() {
		for i := range keys {
			k, at := &keys[i], p.At(credential, "keys").Index(i).At("not_after")
			listed = true
			switch left := k.NotAfter.Sub(now); {
			case k.NotAfter.IsZero() || left > expiresSoon:
			case left < 0:
				at.Warnf("has passed, so the key is not taken any more")
			default:
				at.Warnf("is in less than %d days: a new key is due", int(left/(24*time.Hour))+1)
			}
			valid = valid || (&keyInfo{notBefore: k.NotBefore, notAfter: k.NotAfter}).checkDates(now) == ""
		}
	}
	if listed && !valid {
		p.Warnf("has no key that is valid now")
	}
}

// keysByKind returns the keys of each credential that lists some.
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
