package httpsig

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"time"

	"sallyport/auth/field"

	"github.com/dunglas/httpsfv"
)

// SigningKey makes HTTP message signatures (RFC 9421).
type SigningKey struct {
	id  string
	alg string
	key any // []byte, ed25519.PrivateKey or *ecdsa.PrivateKey
}

// NewSigningKey returns the key of a text: a private key of Ed25519 or P-256 in PEM (PKCS #8), or a secret
// for hmac-sha256. The id is its keyid.
func NewSigningKey(id string, text []byte) (*SigningKey, error) {
	if !field.IsPrintable(id) {
		return nil, errors.New("the keyid is missing, or is not short printable ASCII")
	}
	if !bytes.Contains(text, []byte("-----BEGIN")) {
		return &SigningKey{id, HMAC, text}, nil
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("the key is not valid PEM")
	}
	private, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("the key is not a private key in PKCS #8")
	}
	switch key := private.(type) {
	case ed25519.PrivateKey:
		return &SigningKey{id, Ed25519, key}, nil
	case *ecdsa.PrivateKey:
		if key.Params().Name == "P-256" {
			return &SigningKey{id, P256, key}, nil
		}
	}
	return nil, errors.New("the key is not an Ed25519 or P-256 key")
}

// Sign returns Signature-Input, Signature and, for a request with a body, Content-Digest. They cover
// method, target, content type and body. A receiver recognises a repeated request by the nonce. An empty
// tag is left out.
func (k *SigningKey) Sign(r *Request, now time.Time, nonce, tag string) (http.Header, error) {
	covered, added := []string{"@method", "@target-uri"}, http.Header{}
	signed := *r
	signed.Header = r.Header.Clone()
	if len(r.Body) > 0 {
		covered = append(covered, "content-type", "content-digest")
		sum := sha256.Sum256(r.Body)
		digests := httpsfv.NewDictionary()
		digests.Add("sha-256", httpsfv.NewItem(sum[:]))
		text, err := httpsfv.Marshal(digests)
		if err != nil {
			return nil, err
		}
		added.Set("Content-Digest", text)
		signed.Header.Set("Content-Digest", text)
	}
	input := httpsfv.InnerList{Params: httpsfv.NewParams()}
	for _, name := range covered {
		input.Items = append(input.Items, httpsfv.NewItem(name))
	}
	input.Params.Add("created", now.Unix())
	for _, p := range [][2]string{{"keyid", k.id}, {"alg", k.alg}, {"nonce", nonce}, {"tag", tag}} {
		if p[1] != "" {
			input.Params.Add(p[0], p[1])
		}
	}
	m := &Message{}
	if err := m.composeBase(input, &signed); err != nil {
		return nil, fmt.Errorf("the message signature %w", err)
	}
	signature, err := k.computeSignature(m.Base)
	if err != nil {
		return nil, err
	}
	members := map[string]httpsfv.Member{"Signature-Input": input, "Signature": httpsfv.NewItem(signature)}
	for name, member := range members {
		dict := httpsfv.NewDictionary()
		dict.Add("sig", member)
		text, err := httpsfv.Marshal(dict)
		if err != nil {
			return nil, fmt.Errorf("writing %s: %w", name, err)
		}
		added.Set(name, text)
	}
	return added, nil
}

func (k *SigningKey) computeSignature(base []byte) ([]byte, error) {
	switch key := k.key.(type) {
	case ed25519.PrivateKey:
		return ed25519.Sign(key, base), nil
	case *ecdsa.PrivateKey:
		sum := sha256.Sum256(base)
		r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
		if err != nil {
			return nil, fmt.Errorf("signing: %w", err)
		}
		both := make([]byte, 64)
		r.FillBytes(both[:32])
		s.FillBytes(both[32:])
		return both, nil
	case []byte:
		return computeHMAC(key, base), nil
	}
	return nil, errors.New("the key cannot sign")
}
