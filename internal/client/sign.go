// Package client is the client of the sender: it proves a delivery in any way that sallyport can verify, sends it to a
// hook, and follows the run.
//
// A [Client] speaks https to one server and does not follow redirects, because they would pass the credential to
// another address. A [RequestSigner] proves each request: [HMAC] and [Static] for what webhooks carry, [Signature] for
// HTTP message signatures, [JWT] for tokens, or a client certificate in [Options]. [NewLocal] is for local
// administrators, who need no credential.
//
// [Client.Call] retries while the server is busy or not running. It does not retry after a connection that broke during
// the request, because the delivery may have been accepted. Errors have exit codes ([ExitCode]): [Refused] is an answer
// of the server, [ErrUnreachable] the lack of one.
package client

import (
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"sallyport/auth/field"
	"sallyport/auth/httpsig"
	"sallyport/auth/webhook"
)

// tokenLife is the time from iat to exp of a token. It allows for a slow network and an inexact clock. It is short, so
// that a token from a log is useless soon.
const tokenLife = 5 * time.Minute

// Signer returns the headers that prove the sender of a delivery with this id and body. A nil Signer proves nothing. It
// is for a client certificate or an open hook.
type Signer func(id string, body []byte, at time.Time) (http.Header, error)

// RequestSigner is a Signer that also proves the method and the address of the request. The request has its content
// type.
type RequestSigner func(req *http.Request, id string, body []byte, at time.Time) (http.Header, error)

// Requests returns s for use where a RequestSigner is needed.
func (s Signer) Requests() RequestSigner {
	return func(_ *http.Request, id string, body []byte, at time.Time) (http.Header, error) {
		return s(id, body, at)
	}
}

// Signature makes HTTP message signatures (RFC 9421). key is a secret or a private key in PEM. An empty tag is omitted.
func Signature(keyID, tag string, key []byte) (RequestSigner, error) {
	k, err := httpsig.NewSigningKey(keyID, key)
	if err != nil {
		return nil, fmt.Errorf("reading the key: %w", err)
	}
	return func(req *http.Request, id string, body []byte, at time.Time) (http.Header, error) {
		r := &httpsig.Request{Method: req.Method, Authority: req.URL.Host, URL: req.URL, Header: req.Header, Body: body}
		return k.Sign(r, at, id, tag)
	}, nil
}

// HMAC signs as the sender of the preset scheme does; a few presets sign with
// Ed25519. The secret is the text of the key file without its trailing newline.
func HMAC(preset string, secret []byte) (Signer, error) {
	scheme, ok := webhook.Preset(preset)
	if !ok {
		return nil, fmt.Errorf("unknown scheme %q; known are %s: %w", preset, strings.Join(webhook.Presets(), ", "),
			ErrUsage)
	}
	if isPEMBlock(secret) {
		return nil, fmt.Errorf("the key is PEM, and %s signs with a secret: %w", preset, ErrUsage)
	}
	return func(id string, body []byte, at time.Time) (http.Header, error) {
		return scheme.Sign(secret, body, id, at)
	}, nil
}

// Static sends the same header each time: a configured token, or a JWT that another program made ("Authorization",
// "Bearer …").
func Static(name, value string) (Signer, error) {
	switch {
	case !field.IsToken(name): // name may be "Authorization: Bearer …", so the message does not repeat it
		return nil, fmt.Errorf("the name of the header has characters that are not allowed: %w", ErrUsage)
	case value == "" || !IsHeaderValue(value):
		return nil, fmt.Errorf("the header %q cannot hold this token: %w", name, ErrUsage)
	}
	return func(string, []byte, time.Time) (http.Header, error) {
		h := http.Header{}
		h.Set(name, value)
		return h, nil
	}, nil
}

// IsHeaderValue reports whether value can be the value of a header field. A line break in it would begin another field.
func IsHeaderValue(value string) bool {
	return !strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r >= 0x7f })
}

// JWT describes a token (RFC 7519) to make for each delivery. The token is valid for 5 minutes. Its jti is the
// delivery's id.
type JWT struct {
	Alg      string // HS256 to HS512, RS256 to RS512, PS256 to PS512, ES256 to ES512, or EdDSA
	KeyID    string // kid of the header; empty: none
	Issuer   string
	Audience string
	Subject  string // empty: none
	Claims   map[string]any
}

// Signer makes tokens with key: the secret itself for HS*, otherwise a private
// key in PEM.
func (j JWT) Signer(key []byte) (Signer, error) {
	method := jwt.GetSigningMethod(j.Alg)
	private, err := parseKey(method, key)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"iss", "aud", "sub", "iat", "exp", "jti"} {
		if _, ok := j.Claims[name]; ok {
			return nil, fmt.Errorf("the claim %s is a standard claim: use --issuer, --audience or --subject: %w", name,
				ErrUsage)
		}
	}
	return func(id string, _ []byte, at time.Time) (http.Header, error) {
		claims := jwt.MapClaims{
			"iss": j.Issuer, "aud": j.Audience, "iat": at.Unix(), "exp": at.Add(tokenLife).Unix(),
			"jti": id,
		}
		if j.Subject != "" {
			claims["sub"] = j.Subject
		}
		maps.Copy(claims, j.Claims)
		token := jwt.NewWithClaims(method, claims)
		if j.KeyID != "" {
			token.Header["kid"] = j.KeyID
		}
		text, err := token.SignedString(private)
		if err != nil {
			return nil, fmt.Errorf("signing a token with %s: %w", j.Alg, err)
		}
		return http.Header{"Authorization": {"Bearer " + text}}, nil
	}, nil
}

func parseKey(method jwt.SigningMethod, key []byte) (private any, err error) {
	switch m := method.(type) {
	case *jwt.SigningMethodHMAC:
		if isPEMBlock(key) { // with HS*, each verifier would need this key, and could then sign with it
			return nil, fmt.Errorf("the key is PEM, and %s signs with a secret: give --alg EdDSA, RS256, PS256 or "+
				"ES256, as the key is: %w", m.Name, ErrUsage)
		}
		if len(key) < m.Hash.Size() { // RFC 7518 section 3.2
			err = fmt.Errorf("a secret for %s has at least %d bytes", m.Name, m.Hash.Size())
		}
		private = key
	case *jwt.SigningMethodRSA, *jwt.SigningMethodRSAPSS:
		private, err = jwt.ParseRSAPrivateKeyFromPEM(key)
	case *jwt.SigningMethodECDSA:
		private, err = jwt.ParseECPrivateKeyFromPEM(key)
	case *jwt.SigningMethodEd25519:
		private, err = jwt.ParseEdPrivateKeyFromPEM(key)
	default: // method is nil or "none"
		return nil, fmt.Errorf("unsupported algorithm for a token; use HS256, RS256, PS256, ES256 or EdDSA: %w",
			ErrUsage)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the key: %w", err)
	}
	return private, nil
}

func isPEMBlock(key []byte) bool {
	block, _ := pem.Decode(key)
	return block != nil
}

// Lines returns headers, one per line, in the format that "curl -H @file" reads.
func Lines(h http.Header) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(h)) {
		for _, value := range h[name] {
			b.WriteString(name + ": " + value + "\n")
		}
	}
	return b.String()
}

// ErrUsage is wrapped by errors in the user's command line.
var ErrUsage = errors.New("see --help")
