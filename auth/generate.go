package auth

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"strings"

	"sallyport/auth/httpsig"
	"sallyport/auth/webhook"
)

// NewKey is a new key, as the text of its file.
type NewKey struct {
	Secret []byte // for the sender, and also for the server if Public is nil
	Public []byte // for the server
}

// GenerateKey makes a key for a credential: a preset's name, token, jwt (alg HS256, the default, RS256, ES256
// or EdDSA) or signature (alg ed25519, the default, ecdsa-p256-sha256 or hmac-sha256). Presets that also
// support public keys make a pair with the alg ed25519.
func GenerateKey(scheme, alg string) (NewKey, error) {
	switch scheme {
	case "token":
		if alg == "" {
			return generateSecret(), nil
		}
	case "jwt":
		switch cmp.Or(alg, "HS256") {
		case "HS256":
			return generateSecret(), nil
		case "RS256":
			return encodeKeyPair(rsa.GenerateKey(rand.Reader, 3072))
		case "ES256":
			return encodeKeyPair(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
		case "EdDSA":
			_, key, err := ed25519.GenerateKey(rand.Reader)
			return encodeKeyPair(key, err)
		}
	case "signature":
		switch cmp.Or(alg, httpsig.Ed25519) {
		case httpsig.HMAC:
			return generateSecret(), nil
		case httpsig.P256:
			return encodeKeyPair(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
		case httpsig.Ed25519:
			_, key, err := ed25519.GenerateKey(rand.Reader)
			return encodeKeyPair(key, err)
		}
	default:
		s, ok := webhook.Preset(scheme)
		if !ok {
			known := strings.Join(webhook.Presets(), ", ")
			return NewKey{}, fmt.Errorf("unknown scheme %q; known are token, jwt, signature, %s", scheme, known)
		}
		secret, public, err := s.GenerateKey(alg)
		return NewKey{secret, public}, err
	}
	return NewKey{}, fmt.Errorf("%s has no keys for %q", scheme, alg)
}

// generateSecret returns a secret of 256 bits in hex, as RFC 2104 advises for SHA-256.
func generateSecret() NewKey {
	secret := make([]byte, sha256.Size)
	_, _ = rand.Read(secret) // never fails
	return NewKey{Secret: []byte(hex.EncodeToString(secret) + "\n")}
}

// encodeKeyPair returns the private and the public key in PEM (PKCS #8, and RFC 5280 SubjectPublicKeyInfo).
func encodeKeyPair(key crypto.Signer, err error) (NewKey, error) {
	if err != nil {
		return NewKey{}, fmt.Errorf("making a key: %w", err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return NewKey{}, fmt.Errorf("encoding a key: %w", err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return NewKey{}, fmt.Errorf("encoding a key: %w", err)
	}
	return NewKey{
		Secret: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
		Public: pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}),
	}, nil
}
