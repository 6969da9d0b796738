package audit

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"sallyport/internal/pathsafe"
)

// keyName is the name of the key in each signature.
const keyName = "sallyport"

// book is the first line of a checkpoint, which says what it is for: a checkpoint among the lines does not
// pass for one of the end, nor a checkpoint of one chain for one of the other.
type book struct{ ofLine, ofHead string }

func decisionsBook() book {
	return book{"sallyport audit, line before", "sallyport audit, latest line"}
}

func refusalsBook() book {
	return book{"sallyport audit refusals, line before", "sallyport audit refusals, latest line"}
}

// signer signs notes of the package note.
type signer struct {
	note.Verifier

	key  ed25519.PrivateKey
	vkey string // of the verifier
}

// Sign implements note.Signer.
func (s *signer) Sign(msg []byte) ([]byte, error) { return ed25519.Sign(s.key, msg), nil }

func newSigner(key ed25519.PrivateKey) (*signer, error) {
	public, ok := key.Public().(ed25519.PublicKey)
	if !ok {
		return nil, errors.New("not an Ed25519 key")
	}
	vkey, err := note.NewEd25519VerifierKey(keyName, public)
	if err != nil {
		return nil, err
	}
	v, err := note.NewVerifier(vkey)
	return &signer{v, key, vkey}, err
}

// signCheckpoint returns a signed note about a place.
func (s *signer) signCheckpoint(kind string, p place, at time.Time) (string, error) {
	text := fmt.Sprintf("%s\n%d\n%s\n%s\n", kind, p.seq, p.hash, at.UTC().Format(time.RFC3339Nano))
	signed, err := note.Sign(&note.Note{Text: text}, s)
	return string(signed), err
}

// checkpoint is a checkpoint with a verified signature.
type checkpoint struct {
	place
	at time.Time
}

var errCheckpoint = errors.New("not a checkpoint of this kind")

// openCheckpoint verifies a checkpoint.
func openCheckpoint(kind, signed string, known note.Verifiers) (checkpoint, error) {
	n, err := note.Open([]byte(signed), known)
	if err != nil {
		return checkpoint{}, err
	}
	for _, s := range n.Sigs {
		// The library ignores the unused bits of base64.
		if _, err := base64.StdEncoding.Strict().DecodeString(s.Base64); err != nil {
			return checkpoint{}, err
		}
	}
	fields := strings.Split(n.Text, "\n")
	if len(fields) != 5 || fields[0] != kind || len(fields[2]) != hashSize {
		return checkpoint{}, errCheckpoint
	}
	seq, err1 := strconv.ParseUint(fields[1], 10, 64)
	at, err2 := time.Parse(time.RFC3339Nano, fields[3])
	return checkpoint{place{seq, fields[2]}, at}, errors.Join(err1, err2)
}

// Verifiers returns the verifiers of verifier keys, in the form of [Keys].
func Verifiers(keys []string) (note.Verifiers, error) {
	var list []note.Verifier
	seen := map[string]bool{}
	for _, key := range keys {
		if seen[key] {
			continue
		}
		seen[key] = true
		v, err := note.NewVerifier(key)
		if err != nil {
			return nil, fmt.Errorf("%q is not a verifier key: %w", key, err)
		}
		list = append(list, v)
	}
	return note.VerifierList(list...), nil
}

// ParseKey reads a private ed25519 key: PEM, PKCS #8.
func ParseKey(text []byte) (ed25519.PrivateKey, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" || len(strings.TrimSpace(string(rest))) > 0 {
		return nil, errors.New("it is not a private key in PEM: make one with openssl genpkey -algorithm ed25519")
	}
	any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("it is not a private key: %w", err)
	}
	key, ok := any.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("it is a %T, but must be an Ed25519 key", any)
	}
	return key, nil
}

// readOrMakeKey returns the key of a state folder, and makes it if needed.
func readOrMakeKey(state string) (ed25519.PrivateKey, error) {
	name := filepath.Join(state, keyFile)
	text, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return makeKey(name)
	}
	if err != nil {
		return nil, err
	}
	key, err := ParseKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return key, nil
}

func makeKey(name string) (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, pathsafe.ReplaceFileAt(name, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}
