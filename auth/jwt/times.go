package jwt

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"sallyport/auth/field"
)

const (
	// MaxLeeway is the most by which clocks may differ.
	MaxLeeway = 5 * time.Minute
	// MaxLifetime is the longest time from iat to exp. A token that lives longer is a password.
	MaxLifetime = 24 * time.Hour
)

// Times are the times of a token.
type Times struct {
	Issued    time.Time // iat
	Expires   time.Time // exp
	NotBefore time.Time // nbf; zero without one
}

// ReadTimes returns the times of a token. It requires exp and iat.
func ReadTimes(claims map[string]any) (Times, error) {
	at := map[string]time.Time{}
	for _, name := range []string{"exp", "iat", "nbf"} {
		claim, there := claims[name]
		if !there && name == "nbf" {
			continue
		}
		t, ok := readNumericDate(claim)
		if !ok {
			return Times{}, errors.New("the claim " + name + " is missing or is not a time")
		}
		at[name] = t
	}
	return Times{Issued: at["iat"], Expires: at["exp"], NotBefore: at["nbf"]}, nil
}

// CheckLifetime returns an error if the token expires before it is issued, or lives too long.
func (at Times) CheckLifetime() error {
	switch {
	case !at.Expires.After(at.Issued):
		return errors.New("the token expires before it is issued")
	case at.Expires.After(at.Issued.Add(MaxLifetime)):
		return fmt.Errorf("the token lives longer than %s", MaxLifetime)
	}
	return nil
}

// CheckNow returns an error if the token is not valid now, or was issued longer ago than maxAge. The clocks
// of the issuer and of this server may differ by leeway.
func (at Times) CheckNow(now time.Time, maxAge, leeway time.Duration) error {
	switch {
	case !now.Before(at.Expires.Add(leeway)):
		return errors.New("the token has expired")
	case at.Issued.After(now.Add(leeway)):
		return errors.New("the token is issued in the future")
	case at.NotBefore.After(now.Add(leeway)):
		return errors.New("the token is not valid yet")
	case at.Issued.Before(now.Add(-maxAge - leeway)):
		return fmt.Errorf("the token was issued more than %s ago", maxAge)
	}
	return nil
}

// readNumericDate reads a NumericDate (RFC 7519 2) after the epoch and of at most
// eleven digits: a plain JSON number, without sign or exponent.
func readNumericDate(v any) (time.Time, bool) {
	n, ok := v.(json.Number)
	if !ok || strings.Trim(n.String(), "0123456789.") != "" {
		return time.Time{}, false
	}
	f, err := n.Float64()
	if err != nil || !field.IsUnix(f) {
		return time.Time{}, false
	}
	whole, part := math.Modf(f)
	return time.Unix(int64(whole), int64(part*1e9)), true
}
