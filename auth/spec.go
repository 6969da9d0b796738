package auth

import (
	"time"

	"sallyport/auth/webhook"
	"sallyport/internal/netid"
)

// CallerSpec is a caller in the configuration file. It needs at least one credential. With several, one that
// verifies is enough.
type CallerSpec struct {
	HMAC      *HMACSpec      `yaml:"hmac"`
	Signature *SignatureSpec `yaml:"signature"`
	JWT       *JWTSpec       `yaml:"jwt"`
	MTLS      *MTLSSpec      `yaml:"mtls"`
	Token     *TokenSpec     `yaml:"token"`
	// Replay is check, allow, until_success or request. Default: until_success for the hmac presets of git forges,
	// request for the jwt preset gitlab-ci, check for other hmac, signature and jwt, and allow for mtls and token,
	// because their senders may repeat deliveries legitimately.
	Replay string `yaml:"replay"`
	// From are the networks that the caller sends from. A valid credential from elsewhere is refused like a wrong one.
	From []netid.Network `yaml:"from"` // default: all addresses
}

// HasEvents reports whether a credential of the caller says where a delivery has its event name.
func (s *CallerSpec) HasEvents() bool {
	if s.JWT != nil && s.JWT.Preset == "github-actions" {
		return true
	}
	if s.HMAC == nil {
		return false
	}
	if scheme, ok := webhook.Preset(s.HMAC.Scheme); ok {
		return scheme.Spec().Event != nil
	}
	return s.HMAC.Event != nil
}

// HMACSpec names a preset, or describes a scheme with the same settings.
type HMACSpec struct {
	Scheme             string    `yaml:"scheme"` // a preset's name; then no other setting but keys
	Keys               []KeySpec `yaml:"keys"`
	webhook.SchemeSpec `yaml:",inline"`
}

// KeySpec is one secret or public key of a caller, and where it is: exactly one of File, Env and Credential,
// never in the configuration file.
type KeySpec struct {
	ID         string    `yaml:"id"`
	File       string    `yaml:"file"`       // relative to the configuration file
	Env        string    `yaml:"env"`        // name of an environment variable
	Credential string    `yaml:"credential"` // name of a file in $CREDENTIALS_DIRECTORY
	NotBefore  time.Time `yaml:"not_before"`
	NotAfter   time.Time `yaml:"not_after"`
	Alg        string    `yaml:"alg"` // jwt and signature only: the one algorithm of this key; default by its type
}

// SignatureSpec is an HTTP message signature (RFC 9421). Its keyid names the key.
type SignatureSpec struct {
	Authority  []string      `yaml:"authority"`  // the names by which senders reach this server, host or host:port
	Keys       []KeySpec     `yaml:"keys"`       // secrets (hmac-sha256) or PEM public keys; their ids are the keyids
	Components []string      `yaml:"components"` // that must be covered in addition to method, target and body
	Tag        string        `yaml:"tag"`        // exact tag; by default the signature must have none
	MaxAge     time.Duration `yaml:"max_age"`    // since created; default 5m
}

// TokenSpec is a static secret that the sender puts into a header.
type TokenSpec struct {
	Header string    `yaml:"header"` // default Authorization
	Prefix string    `yaml:"prefix"` // default "Bearer " for Authorization, else ""
	Keys   []KeySpec `yaml:"keys"`
}

// JWTSpec is a signed token (RFC 7519) in "Authorization: Bearer".
type JWTSpec struct {
	Preset     string         `yaml:"preset"`     // a known issuer; sets issuer, and requires claims
	Issuer     string         `yaml:"issuer"`     // exact iss, required
	Audience   string         `yaml:"audience"`   // one member of aud, required
	Algorithms []string       `yaml:"algorithms"` // default: what the keys are for
	Keys       []KeySpec      `yaml:"keys"`       // secrets (HS*) or PEM public keys
	JWKS       string         `yaml:"jwks"`       // key set: file or https address; default without keys: by discovery
	CA         string         `yaml:"ca"`         // PEM: the CAs for fetching keys; default the system's CAs
	Claims     map[string]any `yaml:"claims"`     // exact values with their types; a mapping for an object
	MaxAge     time.Duration  `yaml:"max_age"`    // since iat; default 10m, or the preset's
	Leeway     time.Duration  `yaml:"leeway"`     // default 30s
}

// MTLSSpec identifies the client certificates of a caller: by exactly one of URI, DNS and CN, which are
// compared whole, or by Fingerprint.
type MTLSSpec struct {
	URI         string       `yaml:"uri"`
	DNS         string       `yaml:"dns"`
	CN          string       `yaml:"cn"`
	Fingerprint Fingerprints `yaml:"fingerprint"` // SHA-256 of the certificate itself
	CA          string       `yaml:"ca"`          // PEM: the CAs that verify it, instead of tls.client_ca
}

// Fingerprints are one or several, of which one must match. While a certificate is renewed, the file has the
// fingerprints of the old and the new one.
type Fingerprints []string

// UnmarshalYAML reads one fingerprint, or a list.
func (f *Fingerprints) UnmarshalYAML(decode func(any) error) error {
	var list []string
	if decode(&list) == nil {
		*f = list
		return nil
	}
	*f = Fingerprints{""}
	return decode(&(*f)[0])
}
