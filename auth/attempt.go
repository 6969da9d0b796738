package auth

import (
	"errors"
	"fmt"
	"slices"

	"sallyport/auth/field"
)

// maxHeader bounds the headers that hold credentials, in bytes.
const maxHeader = 16 << 10

// errAbsent is the error of a delivery without a credential of some kind. The next kind is tried then. Every other
// error is final.
var errAbsent = errors.New("absent")

// attempt is the authentication of one delivery.
type attempt struct {
	callers  *Callers
	delivery *Delivery
	hook     []string // the callers that are tried first
	spent    int      // cost of the verification so far, in bytes hashed
}

func (a *attempt) identifyCaller() (*Identity, error) {
	for _, name := range a.callers.reads {
		values := a.delivery.Header[name]
		if len(values) > 1 {
			return nil, newRefusal(Malformed, "", "the header %s occurs %d times", name, len(values))
		}
		if len(values) == 1 && len(values[0]) > maxHeader {
			return nil, newRefusal(Malformed, "", "the header %s is over %d bytes", name, maxHeader)
		}
	}
	for _, authenticate := range []func() (*Identity, error){
		a.authenticateSignature, a.authenticateHMAC, a.authenticateJWT, a.refuseOtherSchemes, a.authenticateToken,
		a.authenticateMTLS,
	} {
		if id, err := authenticate(); !errors.Is(err, errAbsent) {
			return id, err
		}
	}
	return nil, newRefusal(Absent, "", "the request carries no credential (header or certificate) that any caller uses")
}

// refuseOtherSchemes refuses an Authorization header if callers use that header, but none of them in this
// form. Tokens are checked later.
func (a *attempt) refuseOtherSchemes() (*Identity, error) {
	token := func(one *caller) bool {
		if one.tokens == nil || one.tokens.header != "Authorization" {
			return false
		}
		_, ok := field.CutPrefix(a.delivery.Header.Get("Authorization"), one.tokens.prefix)
		return ok
	}
	if len(a.delivery.Header["Authorization"]) == 0 || !slices.Contains(a.callers.reads, "Authorization") ||
		slices.ContainsFunc(a.callers.all, token) {
		return nil, errAbsent
	}
	return nil, newRefusal(Malformed, "", "the Authorization header does not have the form of any caller's credential")
}

// reasonOrStale returns Stale for a [field.StaleError], and the reason for any other error.
func reasonOrStale(reason Reason, err error) Reason {
	if stale := field.StaleError(""); errors.As(err, &stale) {
		return Stale
	}
	return reason
}

func newRefusal(reason Reason, kind, format string, a ...any) *Refusal {
	return &Refusal{Reason: reason, Kind: kind, Detail: fmt.Sprintf(format, a...)}
}
