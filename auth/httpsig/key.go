package httpsig

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"math/big"
	"time"
)

// The algorithms of RFC 9421 3.3 that this package supports: those with one hash and one kind of key.
const (
	HMAC    = "hmac-sha256"
	Ed25519 = "ed25519"
	P256    = "ecdsa-p256-sha256"
)

// MaxAge is the longest time for which a receiver may accept a signature.
const MaxAge = 24 * time.Hour

// Key is a key with the one algorithm that it is for (RFC 9421 7.3.6).
type Key struct {
	Alg      string
	Material any // []byte, ed25519.PublicKey or *ecdsa.PublicKey
}

// NewKey returns the key of a secret ([]byte) or of a public key.
func NewKey(material any) (*Key, error) {
	switch key := material.(type) {
	case []byte:
		return &Key{HMAC, key}, nil
	case ed25519.PublicKey:
		return &Key{Ed25519, key}, nil
	case *ecdsa.PublicKey:
		if key.Params().Name == "P-256" {
			return &Key{P256, key}, nil
		}
	}
	return nil, errors.New("is not an Ed25519 or P-256 key")
}

// Verify reports whether the key verifies the signature of a base (RFC 9421 3.3.3 to 3.3.6).
func (k *Key) Verify(base, signature []byte) bool {
	switch key := k.Material.(type) {
	case []byte:
		return hmac.Equal(computeHMAC(key, base), signature)
	case ed25519.PublicKey:
		return ed25519.Verify(key, base, signature)
	case *ecdsa.PublicKey:
		if len(signature) != 64 { // r and s, each of 32 bytes (3.3.4)
			return false
		}
		sum := sha256.Sum256(base)
		return ecdsa.Verify(key, sum[:], new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:]))
	}
	return false
}

func computeHMAC(key, message []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(message)
	return mac.Sum(nil)
}
