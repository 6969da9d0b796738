package handlers

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"sallyport/auth"
	"sallyport/internal/config"
	"sallyport/internal/keyuse"
	"sallyport/internal/netid"
)

// credentials authenticate requests under one configuration.
type credentials struct {
	config *config.Config
	limits *rateLimits
	now    func() time.Time
}

// authenticate returns the caller that sent a delivery. A failure spends a token of the failures of the address, so
// that a flood of failures never spends the budget of a caller.
func (c *credentials) authenticate(r *http.Request, req *request, body []byte, at *endpoint) (*auth.Identity, error) {
	var callers []string
	if at != nil {
		if at.isUnauthenticated() {
			return &auth.Identity{}, nil
		}
		callers = at.callers
	}
	d := &auth.Delivery{
		Method: r.Method, Authority: r.Host, URL: r.URL, Header: r.Header, Body: body, TLS: r.TLS, Now: c.now(),
		Address: remoteAddr(r),
	}
	who, err := c.config.Auth.Authenticate(d, callers)
	if auth.AwaitKey(r.Context(), err, netid.Site(remoteAddr(r))) { // the key that was missing may have been loaded now
		d.Now = c.now()
		who, err = c.config.Auth.Authenticate(d, callers)
	}
	if err == nil {
		req.caller, req.credentialKind, req.key = who.Caller, who.Kind, who.Key
		netid.ConnectionOf(r).Prove()
		c.config.Uses.Note(keyuse.Use{Caller: who.Caller, Kind: who.Kind, Key: who.Key, At: c.now()})
		return who, nil
	}
	req.resembles = c.resembledCallers(d, callers)
	_ = errors.As(err, &req.refused)
	unsignedTest := c.config.Auth.IsUnsignedTest(d, callers, err)
	err = c.limits.refuseCredential(r, err)
	if why := (*refusal)(nil); unsignedTest && errors.As(err, &why) && why.status == http.StatusUnauthorized {
		return nil, errUnsignedTest
	}
	return nil, err
}

// resembledCallers returns the names of the observed callers that may have sent a delivery without a valid
// credential, so that the operator knows which sender to correct.
func (c *credentials) resembledCallers(d *auth.Delivery, callers []string) string {
	if callers == nil { // a request of the run API, which any caller may make
		callers = c.config.Auth.Names()
	}
	return strings.Join(slices.DeleteFunc(slices.Clone(callers), func(name string) bool {
		return !c.config.Observed[name] || !c.config.Auth.CouldBeFrom(d, name)
	}), ",")
}
