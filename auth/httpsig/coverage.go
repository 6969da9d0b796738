package httpsig

import (
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/dunglas/httpsfv"

	"sallyport/auth/field"
)

// CheckCoverage returns an error if the signature does not cover enough (RFC 9421 7.2.1): the method, the
// target with its authority, the content type and the digest of the body, and the components that the
// receiver requires in addition.
func (m *Message) CheckCoverage(r *Request, components []string) error {
	need := append([]string{"@method"}, components...)
	if !slices.Contains(m.Components, "@target-uri") {
		need = append(need, "@authority", "@path", "@query")
	}
	if len(r.Body) > 0 {
		need = append(need, "content-type", "content-digest")
	}
	for _, name := range need {
		if !slices.Contains(m.Components, name) {
			return errors.New("it does not cover " + name)
		}
	}
	if slices.Contains(m.Components, "content-digest") {
		if err := checkDigest(r.Header.Get("Content-Digest"), r.Body); err != nil {
			return fmt.Errorf("the Content-Digest %w", err)
		}
	}
	return nil
}

// CheckTime returns a [field.StaleError] if the signature is older than maxAge, from the future, or expired.
func (m *Message) CheckTime(now time.Time, maxAge time.Duration) error {
	if err := field.CheckAge(m.Created, now, maxAge, maxSkew); err != nil {
		return err
	}
	if !m.Expires.IsZero() && now.After(m.Expires) {
		return field.StaleError("its expires has passed")
	}
	return nil
}

// checkDigest compares the digests of RFC 9530 2 with the body. At least one must be by a hash that
// cannot be forged; the others are ignored.
func checkDigest(value string, body []byte) error {
	dict, err := parseCanonical(value)
	if err != nil {
		return err
	}
	known := false
	for _, name := range dict.Names() {
		var sum []byte
		switch name {
		case "sha-256":
			s := sha256.Sum256(body)
			sum = s[:]
		case "sha-512":
			s := sha512.Sum512(body)
			sum = s[:]
		default:
			continue
		}
		member, _ := dict.Get(name)
		item, _ := member.(httpsfv.Item)
		if want, _ := item.Value.([]byte); subtle.ConstantTimeCompare(want, sum) != 1 {
			return errors.New("does not match the body")
		}
		known = true
	}
	if !known {
		return errors.New("has neither sha-256 nor sha-512")
	}
	return nil
}
