package webhook

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Sign returns the headers with which the scheme's sender would sign body. The secret is the text of the key file. For
// Ed25519 it is the private key or its seed in the encoding of the public key (after "whsk_" if the public key begins
// with "whpk_"). The caller sets the content type, and writes a timestamp into the body if the scheme has one there.
func (s *Scheme) Sign(secret, body []byte, id string, at time.Time) (http.Header, error) {
	if s.otherHalf != nil && bytes.HasPrefix(secret, []byte(s.otherHalf.spec.Key.privatePrefix())) {
		return s.otherHalf.Sign(secret, body, id, at)
	}
	sig := &Signature{ID: id}
	h := http.Header{}
	if s.signed.coversHole("ts") {
		sig.Timestamp = strconv.FormatInt(at.Unix(), 10)
		if s.spec.TS.Unit == "ms" {
			sig.Timestamp = strconv.FormatInt(at.UnixMilli(), 10)
		}
		if s.tsHeader != "" {
			h.Set(s.tsHeader, sig.Timestamp)
		}
	}
	if s.idHeader != "" {
		if !s.signed.isUnambiguousID(id) {
			return nil, errors.New("the scheme signs an id, and this one is missing or is not an id")
		}
		h.Set(s.idHeader, id)
	}
	sum, err := s.computeSignature(secret, sig, body)
	if err != nil {
		return nil, err
	}
	text := hex.EncodeToString(sum)
	if s.spec.Encoding == "base64" {
		text = base64.StdEncoding.EncodeToString(sum)
	}
	h.Set(s.spec.Header, strings.NewReplacer("{sig}", text, "{ts}", sig.Timestamp).Replace(s.spec.Value))
	return h, nil
}

func (s *Scheme) computeSignature(secret []byte, sig *Signature, body []byte) ([]byte, error) {
	if !s.IsAsymmetric() {
		key, err := s.ParseKey(secret)
		if err != nil {
			return nil, fmt.Errorf("the key %w", err)
		}
		return s.computeMAC(key.Bytes, sig, body)
	}
	key, err := decodeKey(s.spec.Key.Encoding, bytes.TrimPrefix(secret, []byte(s.spec.Key.privatePrefix())))
	if err != nil {
		return nil, fmt.Errorf("the key %w", err)
	}
	if len(key) < ed25519.SeedSize || len(key) != ed25519.SeedSize && len(key) != ed25519.PrivateKeySize {
		return nil, errors.New("the key is not an Ed25519 private key")
	}
	private := ed25519.NewKeyFromSeed(key[:ed25519.SeedSize])
	message, err := s.composeMessage(sig, body)
	if err != nil {
		return nil, err
	}
	return ed25519.Sign(private, message), nil
}
