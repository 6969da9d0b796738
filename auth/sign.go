package auth

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Sign returns the headers with which the scheme's sender would sign body. The
// secret is the text of the key file; for Ed25519 it is the private key or its
// seed in the encoding of the public one (after "whsk_" where that begins with
// "whpk_"). A timestamp that stands in the body is the caller's to put there,
// and so is the content type.
func (s *Scheme) Sign(secret, body []byte, id string, at time.Time) (http.Header, error) {
	if s.alt != nil && bytes.HasPrefix(secret, []byte(s.alt.privatePrefix())) {
		return s.alt.Sign(secret, body, id, at)
	}
	sig := &signature{id: id}
	h := http.Header{}
	if s.covers("ts") {
		sig.ts = strconv.FormatInt(at.Unix(), 10)
		if s.spec.TS.Unit == "ms" {
			sig.ts = strconv.FormatInt(at.UnixMilli(), 10)
		}
		if s.tsHeader != "" {
			h.Set(s.tsHeader, sig.ts)
		}
	}
	if s.idHeader != "" {
		if !s.goodID(id) {
			return nil, errors.New("the scheme signs an id, and this is missing or not one")
		}
		h.Set(s.idHeader, id)
	}
	b, err := s.sign(secret, sig, body)
	if err != nil {
		return nil, err
	}
	text := hex.EncodeToString(b)
	if s.spec.Encoding == "base64" {
		text = base64.StdEncoding.EncodeToString(b)
	}
	h.Set(s.spec.Header, strings.NewReplacer("{sig}", text, "{ts}", sig.ts).Replace(s.spec.Value))
	return h, nil
}

func (s *Scheme) sign(secret []byte, sig *signature, body []byte) ([]byte, error) {
	if s.newHash != nil {
		_, key, err := s.key(secret)
		if err != nil {
			return nil, errors.New("the key " + err.Error())
		}
		return s.mac(key, sig, body), nil
	}
	key, err := decodeKey(s.spec.Key.Encoding, bytes.TrimPrefix(secret, []byte(s.privatePrefix())))
	if err != nil {
		return nil, errors.New("the key " + err.Error())
	}
	if len(key) < ed25519.SeedSize || len(key) != ed25519.SeedSize && len(key) != ed25519.PrivateKeySize {
		return nil, errors.New("the key is not an Ed25519 private key")
	}
	private := ed25519.NewKeyFromSeed(key[:ed25519.SeedSize])
	return ed25519.Sign(private, bytes.Join(s.message(sig, body), nil)), nil
}

// privatePrefix is how the private half of a prefixed public key begins:
// Standard Webhooks has whpk_ for public and whsk_ for secret.
func (s *Scheme) privatePrefix() string {
	return strings.Replace(s.spec.Key.Prefix, "pk_", "sk_", 1)
}
