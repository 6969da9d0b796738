package auth

import (
	"time"

	"sallyport/auth/webhook"
)

// CallerSpec is a caller as the configuration file writes it. At least one
// credential is needed; with several, any one that verifies will do.
type CallerSpec struct {
	HMAC      *HMACSpec      `yaml:"hmac"`
	Signature *SignatureSpec `yaml:"signature"`
	JWT       *JWTSpec       `yaml:"jwt"`
	MTLS      *MTLSSpec      `yaml:"mtls"`
	Token     *TokenSpec     `yaml:"token"`
	// Replay is check or allow. Default: check for hmac, signature and jwt, allow
	// for mtls and token, whose senders may repeat themselves legitimately.
	Replay string `yaml:"replay"`
}

// HMACSpec names a preset scheme, or describes one by the same knobs.
type HMACSpec struct {
	Scheme             string    `yaml:"scheme"` // a preset's name; then no other knob but keys
	Keys               []KeySpec `yaml:"keys"`
	webhook.SchemeSpec `yaml:",inline"`
}

// KeySpec is one secret or public key of a caller, and where it is kept. One of
// File, Env and Credential; never inline.
type KeySpec struct {
	ID         string    `yaml:"id"`
	File       string    `yaml:"file"`       // relative to the configuration file
	Env        string    `yaml:"env"`        // name of an environment variable
	Credential string    `yaml:"credential"` // name of a file in $CREDENTIALS_DIRECTORY
	NotBefore  time.Time `yaml:"not_before"`
	NotAfter   time.Time `yaml:"not_after"`
	Alg        string    `yaml:"alg"` // jwt and signature only: the one algorithm of this key; default by its type
}

// SignatureSpec is an HTTP message signature (RFC 9421), of requests that name
// the key in its keyid.
type SignatureSpec struct {
	Authority  []string      `yaml:"authority"`  // by which this server is asked, host or host:port; required
	Keys       []KeySpec     `yaml:"keys"`       // secrets (hmac-sha256) or PEM public keys; their ids are the keyids
	Components []string      `yaml:"components"` // what must be covered beyond method, target and body
	Tag        string        `yaml:"tag"`        // exact tag; default: there must be none
	MaxAge     time.Duration `yaml:"max_age"`    // since created; default 5m
}

// TokenSpec is a static secret that arrives whole in one header.
type TokenSpec struct {
	Header string    `yaml:"header"` // default Authorization
	Prefix string    `yaml:"prefix"` // default "Bearer " for Authorization, else ""
	Keys   []KeySpec `yaml:"keys"`
}

// JWTSpec is a signed token (RFC 7519) in "Authorization: Bearer".
type JWTSpec struct {
	Preset     string         `yaml:"preset"`     // of an issuer that is known; fills issuer, and demands claims
	Issuer     string         `yaml:"issuer"`     // exact iss, required
	Audience   string         `yaml:"audience"`   // one member of aud, required
	Algorithms []string       `yaml:"algorithms"` // default: what the keys are for
	Keys       []KeySpec      `yaml:"keys"`       // secrets (HS*) or PEM public keys
	JWKS       string         `yaml:"jwks"`       // key set (RFC 7517): a file, or an https address; default without keys: by discovery
	CA         string         `yaml:"ca"`         // PEM: whom to believe when keys are fetched; default the system's CAs
	Claims     map[string]any `yaml:"claims"`     // exact values, type-strict; a mapping goes down into a claim that is an object
	MaxAge     time.Duration  `yaml:"max_age"`    // since iat; default 10m, or the preset's
	Leeway     time.Duration  `yaml:"leeway"`     // default 30s
}

// MTLSSpec names who a client certificate must be for. One of URI, DNS and CN,
// compared whole, or Fingerprint.
type MTLSSpec struct {
	URI         string       `yaml:"uri"`
	DNS         string       `yaml:"dns"`
	CN          string       `yaml:"cn"`
	Fingerprint Fingerprints `yaml:"fingerprint"` // SHA-256 of the certificate itself
	CA          string       `yaml:"ca"`          // PEM: the CAs it must lead to, in place of tls.client_ca
}

// Fingerprints are one or several, of which any one will do: when a certificate
// is renewed, the old and the new one are good for a while.
type Fingerprints []string

// UnmarshalYAML reads one, or a list.
func (f *Fingerprints) UnmarshalYAML(decode func(any) error) error {
	var list []string
	if decode(&list) == nil {
		*f = list
		return nil
	}
	*f = Fingerprints{""}
	return decode(&(*f)[0])
}
