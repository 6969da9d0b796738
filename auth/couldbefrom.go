package auth

import (
	"strings"

	"sallyport/auth/field"
	"sallyport/auth/httpsig"
	"sallyport/auth/jwt"
)

// CouldBeFrom reports whether a delivery that was refused carries what could have been the caller's
// credential, by its header and by the key or issuer that it names. It proves nothing: an attacker can make
// such a delivery.
func (c *Callers) CouldBeFrom(d *Delivery, caller string) bool {
	one := c.byName[caller]
	if one == nil {
		return false
	}
	for i := range one.hmac {
		if len(d.Header[one.hmac[i].key.Header()]) > 0 {
			return true
		}
	}
	if len(d.Header["Signature-Input"]) > 0 && one.signature != nil {
		if m, err := httpsig.Read(d.signedRequest()); err == nil && one.signature.findKey(m.KeyID) != nil {
			return true
		}
	}
	raw, ok := field.CutPrefix(d.Header.Get("Authorization"), "Bearer ")
	if ok && one.jwt != nil && strings.Count(raw, ".") == 2 {
		if t, err := jwt.Parse(raw); err == nil && t.Claims["iss"] == one.jwt.issuer {
			return true
		}
	}
	if one.tokens != nil && len(d.Header[one.tokens.header]) > 0 {
		_, ok := field.CutPrefix(d.Header.Get(one.tokens.header), one.tokens.prefix)
		return ok
	}
	return false
}
