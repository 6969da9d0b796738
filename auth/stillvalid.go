package auth

import "slices"

// StillValid reports whether the credential that verified on a request is still valid: the caller and its key
// still exist, and the caller may send from the address. It is for answers that take long. A certificate or a static
// token is verified again. For a signature, which was made for one moment, only the key is checked.
func (c *Callers) StillValid(d *Delivery, caller, kind, key string) bool {
	one := c.byName[caller]
	switch {
	case one == nil, !one.sendsFrom(d.Address):
		return false
	case kind == "mtls", kind == "token":
		id, err := c.Authenticate(d, []string{caller})
		return err == nil && id.Caller == caller
	case kind == "jwt" && one.jwt != nil && one.jwt.remote != nil:
		return true // the issuer may have withdrawn the key since, as for any token of that age
	}
	return slices.ContainsFunc(c.Keys(), func(k KeyInfo) bool {
		ends := keyInfo{notBefore: k.NotBefore, notAfter: k.NotAfter}
		return k.Caller == caller && k.Kind == kind && k.ID == key && ends.checkDates(d.Now) == ""
	})
}
