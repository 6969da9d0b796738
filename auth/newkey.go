package auth

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"strings"
)

// NewKey is a key that was just made, as the text of its file.
type NewKey struct {
	Secret []byte // what the sender signs with, and where Public is nil the server verifies with
	Public []byte // what the server verifies with
}

const secretBytes = 32 // 256 bits, as RFC 2104 advises for SHA-256

// GenerateKey makes a key of the form that a credential has: a preset's name,
// token, jwt (alg HS256, the default, RS256, ES256 or EdDSA) or signature (alg
// ed25519, the default, ecdsa-p256-sha256 or hmac-sha256). Presets that know
// public keys too make a pair with the alg ed25519.
func GenerateKey(scheme, alg string) (NewKey, error) {
	switch scheme {
	case "token":
		if alg == "" {
			return NewKey{Secret: encodeKey("hex", "", random())}, nil
		}
	case "jwt":
		switch orDefault(alg, "HS256") {
		case "HS256":
			return NewKey{Secret: encodeKey("hex", "", random())}, nil
		case "RS256":
			return pemPair(rsa.GenerateKey(rand.Reader, 3072))
		case "ES256":
			return pemPair(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
		case "EdDSA":
			_, key, err := ed25519.GenerateKey(rand.Reader)
			return pemPair(key, err)
		}
	case "signature":
		switch orDefault(alg, algEd25519) {
		case algHMAC:
			return NewKey{Secret: encodeKey("hex", "", random())}, nil
		case algP256:
			return pemPair(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
		case algEd25519:
			_, key, err := ed25519.GenerateKey(rand.Reader)
			return pemPair(key, err)
		}
	default:
		s, ok := Preset(scheme)
		if !ok {
			return NewKey{}, fmt.Errorf("%q is none of token, jwt, signature, %s", scheme, strings.Join(Presets(), ", "))
		}
		if alg == "ed25519" && s.alt != nil {
			s, alg = s.alt, ""
		}
		if alg == "" {
			return s.newKey()
		}
	}
	return NewKey{}, fmt.Errorf("%s has no keys for %q", scheme, alg)
}

// newKey makes a key in the form of the scheme's key files.
func (s *Scheme) newKey() (NewKey, error) {
	form := s.spec.Key
	if s.newHash != nil {
		return NewKey{Secret: encodeKey(form.Encoding, form.Prefix, random())}, nil
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return NewKey{}, fmt.Errorf("making a key: %w", err)
	}
	return NewKey{
		Secret: encodeKey(form.Encoding, s.privatePrefix(), private),
		Public: encodeKey(form.Encoding, form.Prefix, public),
	}, nil
}

// encodeKey is the reverse of decodeKey; what is taken as it is, is in hex.
func encodeKey(encoding, prefix string, key []byte) []byte {
	text := hex.EncodeToString(key)
	if encoding == "base64" {
		text = base64.StdEncoding.EncodeToString(key)
	}
	return []byte(prefix + text + "\n")
}

func random() []byte {
	b := make([]byte, secretBytes)
	_, _ = rand.Read(b) // never fails
	return b
}

// pemPair writes both halves of a key as PEM (PKCS #8, and RFC 5280
// SubjectPublicKeyInfo).
func pemPair(key crypto.Signer, err error) (NewKey, error) {
	if err != nil {
		return NewKey{}, fmt.Errorf("making a key: %w", err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return NewKey{}, fmt.Errorf("writing a key: %w", err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return NewKey{}, fmt.Errorf("writing a key: %w", err)
	}
	return NewKey{
		Secret: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
		Public: pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}),
	}, nil
}
