package keyset

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/MicahParks/jwkset"

	"sallyport/internal/httpsurl"
	"sallyport/internal/strictjson"
)

const (
	fetchTimeout = 10 * time.Second // of a whole fetch
	maxBody      = 1 << 20
	maxHeader    = 64 << 10
)

// CheckAddress returns an error for an address that is not fetched: one that is not https, or that has parts
// that a request does not carry.
func CheckAddress(text string) error {
	u, err := httpsurl.Parse(text)
	switch {
	case errors.Is(err, httpsurl.ErrUserInfo), err == nil && u.Fragment != "":
		return errors.New("is an address with a user or a fragment")
	case err != nil:
		return errors.New("is not an https address, and keys are fetched over nothing else")
	}
	return nil
}

// newHTTPClient returns a client that trusts the CAs in PEM, or the system's. It uses the proxy of the
// environment, as Go programs do. The proxy sees the host, and nothing else.
func newHTTPClient(ca string) (*http.Client, error) {
	var roots *x509.CertPool
	if ca != "" {
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM([]byte(ca)) {
			return nil, errors.New("has no CA certificate")
		}
	}
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			MaxResponseHeaderBytes: maxHeader,
			DisableCompression:     true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// fetched is a set that was fetched: the keys that can verify a signature, and those that cannot.
type fetched struct {
	keys          []jwkset.JWK
	kids, leftOut []string
}

// fetchKeys returns the current set of the issuer.
func (s *Set) fetchKeys(ctx context.Context) (*fetched, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	defer s.client.CloseIdleConnections() // the next fetch is minutes away
	address := s.source.Address
	if address == "" {
		var err error
		if address, err = s.discoverAddress(ctx); err != nil {
			return nil, err
		}
	}
	data, err := s.fetchDocument(ctx, address)
	if err != nil {
		return nil, err
	}
	got, err := chooseKeys(data)
	if err != nil {
		return nil, fmt.Errorf("what %s answers %w", address, err)
	}
	return got, nil
}

// chooseKeys returns the keys of a set that can verify a signature. A key that cannot is left out, and the
// others are used: issuers also publish keys for encryption, and keys of new types.
func chooseKeys(data []byte) (*fetched, error) {
	all, err := Parse(data, nil)
	if err != nil {
		return nil, err
	}
	got := &fetched{}
	for i, k := range all {
		if k.Err == nil && k.ID == "" {
			k.Err = errors.New("has no kid, by which a fetched key is found")
		}
		var jwk jwkset.JWK
		if k.Err == nil {
			jwk, k.Err = jwkset.NewJWKFromKey(k.Public, jwkset.JWKOptions{
				Metadata: jwkset.JWKMetadataOptions{ALG: jwkset.ALG(k.Alg), KID: k.ID, USE: jwkset.UseSig},
			})
		}
		switch {
		case k.Err == nil:
			got.keys = append(got.keys, jwk)
			got.kids = append(got.kids, k.ID)
		case !errors.Is(k.Err, ErrOtherUse):
			got.leftOut = append(got.leftOut, fmt.Sprintf("keys[%d] %q %v", i, k.ID, k.Err))
		}
	}
	if len(got.keys) == 0 {
		return nil, fmt.Errorf("has no key that can verify a signature: %q", got.leftOut)
	}
	return got, nil
}

// discoverAddress asks the issuer where its keys are (OpenID Connect Discovery 1.0,
// section 4). A document of another issuer is refused (4.3).
func (s *Set) discoverAddress(ctx context.Context) (address string, err error) {
	document := strings.TrimSuffix(s.source.Issuer, "/") + "/.well-known/openid-configuration"
	data, err := s.fetchDocument(ctx, document)
	if err != nil {
		return "", err
	}
	fields, err := strictjson.Decode(data)
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", document, err)
	}
	if issuer, _ := strictjson.Lookup(fields, "issuer"); issuer != s.source.Issuer {
		return "", fmt.Errorf("%s is of another issuer than %s", document, s.source.Issuer)
	}
	uri, _ := strictjson.Lookup(fields, "jwks_uri")
	if address, _ = uri.(string); address == "" {
		return "", fmt.Errorf("%s has no jwks_uri", document)
	}
	return address, nil
}

// fetchDocument is the only function that sends a request.
func (s *Set) fetchDocument(ctx context.Context, address string) ([]byte, error) {
	if err := CheckAddress(address); err != nil {
		return nil, fmt.Errorf("%q %w", address, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json, application/jwk-set+json")
	res, err := s.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close() //nolint:errcheck // only read
	switch {
	case res.StatusCode >= 300 && res.StatusCode < 400:
		return nil, fmt.Errorf("%s answers %d, and redirects are not followed", address, res.StatusCode)
	case res.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s answers %d", address, res.StatusCode)
	}
	data, err := io.ReadAll(io.LimitReader(res.Body, maxBody+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading %s: %w", address, err)
	case len(data) > maxBody:
		return nil, fmt.Errorf("%s answers more than %d bytes", address, maxBody)
	}
	return data, nil
}
