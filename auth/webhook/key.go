package webhook

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

const secretBytes = 32 // 256 bits, as RFC 2104 advises for SHA-256

// Key is a key that verifies the signatures of a scheme.
type Key struct {
	*Scheme        // the half of the scheme that this key is for
	Bytes   []byte // a secret, or an Ed25519 public key
}

// ParseKey reads the text of a key file. A scheme with two kinds of keys has two halves, and the prefix
// of the text decides which of them it is for. No error holds any of the text.
func (s *Scheme) ParseKey(text []byte) (*Key, error) {
	if s.otherHalf != nil && bytes.HasPrefix(text, []byte(s.otherHalf.spec.Key.Prefix)) {
		return s.otherHalf.ParseKey(text)
	}
	key, err := decodeKey(s.spec.Key.Encoding, bytes.TrimPrefix(text, []byte(s.spec.Key.Prefix)))
	if err != nil {
		return nil, err
	}
	if s.IsAsymmetric() && len(key) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("is %d bytes long, and an Ed25519 public key has %d", len(key), ed25519.PublicKeySize)
	}
	return &Key{s, key}, nil
}

// Verify compares every entry in constant time, also after one has matched.
func (k *Key) Verify(sig *Signature, body []byte) bool {
	ok := false
	if k.IsAsymmetric() {
		message, err := k.composeMessage(sig, body)
		for _, sum := range sig.Sums {
			ok = ed25519.Verify(k.Bytes, message, sum) || ok
		}
		return ok && err == nil
	}
	want, err := k.computeMAC(k.Bytes, sig, body)
	for _, sum := range sig.Sums {
		ok = hmac.Equal(want, sum) || ok
	}
	return ok && err == nil
}

func (s *Scheme) computeMAC(key []byte, sig *Signature, body []byte) ([]byte, error) {
	mac := hmac.New(s.newHash, key)
	err := s.writeMessage(mac, sig, body)
	return mac.Sum(nil), err
}

// composeMessage returns what is signed, for signatures that need all of it at once.
func (s *Scheme) composeMessage(sig *Signature, body []byte) ([]byte, error) {
	var message bytes.Buffer
	message.Grow(len(body) + 1<<10)
	err := s.writeMessage(&message, sig, body)
	return message.Bytes(), err
}

// decodeKey keeps the decoders' errors to itself, because they quote the text.
func decodeKey(encoding string, text []byte) ([]byte, error) {
	if encoding == "utf8" {
		return text, nil
	}
	key, err := decodeStrict(encoding, string(text))
	if err != nil {
		return nil, errors.New("is not " + encoding)
	}
	return key, nil
}

// decodeStrict accepts one spelling per value, except for the case of hex digits.
func decodeStrict(encoding, text string) ([]byte, error) {
	if encoding == "hex" {
		return hex.DecodeString(text)
	}
	if strings.ContainsAny(text, "\r\n") { // the decoder skips them
		return nil, errors.New("line break in base64")
	}
	return base64.StdEncoding.Strict().DecodeString(text)
}

// GenerateKey makes a key in the form of the scheme's key files: the secret or private key with which
// the sender signs, and the public key, which is nil where the server verifies with the secret. The alg
// ed25519 asks for a pair of a scheme that has both kinds of keys.
func (s *Scheme) GenerateKey(alg string) (secret, public []byte, err error) {
	switch {
	case alg == "ed25519" && s.otherHalf != nil:
		return s.otherHalf.GenerateKey("")
	case alg != "":
		return nil, nil, fmt.Errorf("%s has no keys for %q", s.Name, alg)
	}
	form := s.spec.Key
	if !s.IsAsymmetric() {
		key := make([]byte, secretBytes)
		_, _ = rand.Read(key) // never fails
		return encodeKey(form.Encoding, form.Prefix, key), nil, nil
	}
	verify, sign, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("making a key: %w", err)
	}
	return encodeKey(form.Encoding, form.privatePrefix(), sign), encodeKey(form.Encoding, form.Prefix, verify), nil
}

// encodeKey is the reverse of decodeKey. A key that is used as it is written is written in hex.
func encodeKey(encoding, prefix string, key []byte) []byte {
	text := hex.EncodeToString(key)
	if encoding == "base64" {
		text = base64.StdEncoding.EncodeToString(key)
	}
	return []byte(prefix + text + "\n")
}

// privatePrefix is the prefix of the private key that belongs to a prefixed public key:
// Standard Webhooks writes whpk_ for public and whsk_ for secret.
func (k KeyForm) privatePrefix() string {
	return strings.Replace(k.Prefix, "pk_", "sk_", 1)
}
