// Package httpsurl checks addresses to which the program sends requests ([Parse]). A credential never goes to an
// address without TLS, and is never part of an address.
package httpsurl

import (
	"errors"
	"net/url"
)

// The errors of Parse. They do not repeat the address, because it may be a credential that was given by mistake.
var (
	ErrForm     = errors.New("is not of the form https://host/path")
	ErrUserInfo = errors.New("has a user or a password")
)

// Parse returns an address with the scheme https, a host, and no user. The URL is nil only if the text cannot be
// parsed.
func Parse(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return nil, ErrForm
	case u.User != nil:
		return u, ErrUserInfo
	case u.Scheme != "https" || u.Host == "":
		return u, ErrForm
	}
	return u, nil
}
