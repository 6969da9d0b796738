package httpsurl_test

import (
	"errors"
	"testing"

	"sallyport/internal/httpsurl"
)

func TestParse_HTTPSOnly(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]error{
		"https://host":              nil,
		"https://host:8443/a?b=c":   nil,
		"HTTPS://[::1]/a":           nil,
		"http://host/":              httpsurl.ErrForm,
		"file:///etc/passwd":        httpsurl.ErrForm,
		"//host/a":                  httpsurl.ErrForm,
		"https:///a":                httpsurl.ErrForm,
		"https:host/a":              httpsurl.ErrForm,
		"/a":                        httpsurl.ErrForm,
		"":                          httpsurl.ErrForm,
		"https://ho\nst/":           httpsurl.ErrForm,
		"https://user@host/":        httpsurl.ErrUserInfo,
		"https://user:secret@host/": httpsurl.ErrUserInfo,
		"http://user:secret@host/":  httpsurl.ErrUserInfo,
	} {
		if u, err := httpsurl.Parse(text); !errors.Is(err, want) || err == nil && u.Scheme != "https" {
			t.Errorf("%q: %v, %v, want %v", text, u, err, want)
		}
	}
}
