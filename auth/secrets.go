package auth

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sallyport/auth/jwt/keyset"
	"sallyport/certs"
	"sallyport/internal/diag"
	"sallyport/internal/pathsafe"
)

const (
	maxKeyFile = 64 << 10
	maxKeys    = 64 // of one caller; each one may cost a verification per delivery

	// The file modes that are refused. A secret may be readable by the owner and
	// the group, and writable by the owner alone; a public key may be readable by all.
	secretMode = 0o027
	publicMode = 0o022
)

// Sources says where keys are read from.
type Sources struct {
	Dir    string                      // relative file names are relative to it
	Getenv func(string) (string, bool) // os.LookupEnv in the program
	Now    time.Time                   // keys that expire soon after cause a warning

	Saw     func(path string, info fs.FileInfo) // is called for every file before it is read; may be nil
	Clients *certs.Clients                      // verify client certificates; needed for callers with mtls

	KeySets map[keyset.Source]*keyset.Set // in force, to be used again; may be nil
	made    map[keyset.Source]*keyset.Set // the sets of the callers that are compiled
}

// reuseKeySet returns the set of a source: the one in force, or a new one.
func (s Sources) reuseKeySet(from keyset.Source) (*keyset.Set, error) {
	set, err := s.made[from], error(nil)
	if set == nil {
		set = s.KeySets[from]
	}
	if set == nil {
		set, err = keyset.New(from)
	}
	s.made[from] = set
	return set, err
}

// Secret returns the text of a secret without one trailing newline. It refuses an empty secret, one over 64 KiB, and a
// file that is not regular, that other users can read, or that other users than its owner can write. No error has any
// of the text.
func (s Sources) Secret(k *KeySpec) ([]byte, error) {
	_, text, err := s.readKeyText(k, secretMode)
	return text, err
}

// readKeyText returns the text of k, and the name of the field that has its place.
func (s Sources) readKeyText(k *KeySpec, forbidden os.FileMode) (field string, text []byte, err error) {
	set := 0
	for _, f := range [][2]string{{"file", k.File}, {"env", k.Env}, {"credential", k.Credential}} {
		if f[1] != "" {
			field = f[0]
			set++
		}
	}
	if set != 1 {
		return "", nil, errors.New("needs exactly one of file, env and credential")
	}
	switch field {
	case "file":
		text, err = s.readKeyFile(s.resolvePath(k.File), forbidden)
	case "env":
		text, err = s.readVariable(k.Env)
	case "credential":
		text, err = s.readCredential(k.Credential, forbidden)
	}
	if err != nil {
		return field, nil, err
	}
	if text = bytes.TrimSuffix(text, []byte("\n")); len(text) == 0 {
		return field, nil, errors.New("is empty")
	}
	return field, text, nil
}

func (s Sources) resolvePath(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(s.Dir, name)
}

func (s Sources) readVariable(name string) ([]byte, error) {
	if s.Getenv != nil {
		if v, ok := s.Getenv(name); ok {
			if len(v) > maxKeyFile {
				return nil, fmt.Errorf("the environment variable %s is over %d bytes", name, maxKeyFile)
			}
			return []byte(v), nil
		}
	}
	return nil, fmt.Errorf("the environment variable %s is not set", name)
}

// readCredential reads a credential of the service manager, systemd.exec(5) LoadCredential=.
func (s Sources) readCredential(name string, forbidden os.FileMode) ([]byte, error) {
	if strings.ContainsAny(name, "/\x00") || name == "." || name == ".." {
		return nil, errors.New("is not a file name without a path")
	}
	dir, err := s.readVariable("CREDENTIALS_DIRECTORY")
	if err != nil {
		return nil, err
	}
	if !filepath.IsAbs(string(dir)) {
		return nil, errors.New("the environment variable CREDENTIALS_DIRECTORY is not an absolute path")
	}
	return s.readKeyFile(filepath.Join(string(dir), name), forbidden)
}

// readKeyFile reads the file of a key or a key set. It refuses a file that another user can change: that user
// could authenticate as the caller.
func (s Sources) readKeyFile(path string, forbidden os.FileMode) ([]byte, error) {
	if s.Saw != nil {
		info, _ := os.Stat(path) // nil if it is not there
		s.Saw(path, info)
	}
	text, faults, err := pathsafe.ReadTrusted(path, path, maxKeyFile, forbidden)
	switch {
	case errors.Is(err, pathsafe.ErrNotRegular):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("reading key: %w", err)
	case len(faults) > 0:
		return nil, errors.New(strings.Join(faults, "; "))
	}
	return text, nil
}

// keyInfo is what all kinds of keys have in common.
type keyInfo struct {
	id                  string
	named               bool // the file has the id
	notBefore, notAfter time.Time
	secret              [sha256.Size]byte // digest of the text of the file, if that is a secret
}

// checkDates returns why the key may not be used now, or nothing.
func (k *keyInfo) checkDates(now time.Time) string {
	switch {
	case !k.notBefore.IsZero() && now.Before(k.notBefore):
		return "verified with a key that is not valid yet: its not_before is in the future"
	case !k.notAfter.IsZero() && now.After(k.notAfter):
		return "verified with a key that has expired: its not_after has passed"
	}
	return ""
}

// compileEachKey calls load with every key of a credential, after the checks that all kinds share.
func compileEachKey(keys []KeySpec, p *diag.List, load func(*KeySpec, keyInfo, *diag.List)) {
	p = p.At("keys")
	if len(keys) > maxKeys {
		p.Errorf("has %d keys, and may have at most %d", len(keys), maxKeys)
		return
	}
	seen := map[string]bool{}
	for i := range keys {
		k, at := &keys[i], p.Index(i)
		info := keyInfo{id: k.ID, named: k.ID != "", notBefore: k.NotBefore, notAfter: k.NotAfter}
		if !info.named {
			info.id = "1"
			if len(keys) > 1 {
				at.Errorf("needs an id, because there are several keys")
			}
		} else if seen[k.ID] {
			at.At("id").Errorf("%q is also the id of another key", k.ID)
		}
		seen[k.ID] = true
		if !k.NotAfter.IsZero() && !k.NotAfter.After(k.NotBefore) {
			at.At("not_after").Errorf("is not after not_before, so the key is never valid")
		}
		load(k, info, at)
	}
}

// loadSecret reads a key that must be secret, and reports its errors.
func (s Sources) loadSecret(k *KeySpec, p *diag.List) ([]byte, bool) {
	if k.Alg != "" {
		p.At("alg").Errorf("is only for keys of jwt and signature")
	}
	return s.loadKeyText(k, secretMode, p)
}

func (s Sources) loadKeyText(k *KeySpec, forbidden os.FileMode, p *diag.List) ([]byte, bool) {
	field, text, err := s.readKeyText(k, forbidden)
	if field != "" {
		p = p.At(field)
	}
	if err != nil {
		p.Errorf("%v", err)
		return nil, false
	}
	switch {
	case forbidden != secretMode:
	case bytes.HasPrefix(text, []byte("\ufeff")):
		p.Warnf("begins with a byte order mark, which becomes part of the key: save the file as UTF-8 without it")
	case bytes.HasSuffix(text, []byte("\r")):
		p.Warnf("ends with a carriage return, which becomes part of the key: save the file with line feeds only")
	case len(bytes.TrimSpace(text)) != len(text):
		p.Warnf("begins or ends with white space, which becomes part of the key")
	}
	return text, true
}

// checkSecretLength refuses secrets that can be guessed, of less than 128 bits. RFC 2104 advises 256 bits for
// SHA-256.
func checkSecretLength(n int, p *diag.List) bool {
	switch {
	case n < 16:
		p.Errorf("is %d bytes long, and must have at least 16", n)
		return false
	case n < 32:
		p.Warnf("is %d bytes long, and should have at least 32", n)
	}
	return true
}
