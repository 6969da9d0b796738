package auth

import "slices"

// StillValid tells whether what verified on a request does still: its caller is there,
// and has the key. It is for answers that last. A certificate and a fixed token are
// judged again; of what was signed for one moment, the key alone.
func (c *Callers) StillValid(d *Delivery, caller, scheme, key string) bool {
	one := c.byName[caller]
	switch {
	case one == nil:
		return false
	case scheme == "mtls", scheme == "token":
		id, err := c.Authenticate(d, []string{caller})
		return err == nil && id.Caller == caller
	case scheme == "jwt" && one.jwt != nil && one.jwt.remote != nil:
		return true // by keys that the issuer may have withdrawn since, as for any token of that age
	}
	return slices.ContainsFunc(c.Keys(), func(k KeyInfo) bool {
		ends := keyInfo{notBefore: k.NotBefore, notAfter: k.NotAfter}
		return k.Caller == caller && k.Kind == scheme && k.ID == key && ends.checkDates(d.Now) == ""
	})
}
