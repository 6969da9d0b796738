package auth

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	"sallyport/auth/jwt"
	"sallyport/auth/jwt/keyset"
	"sallyport/certs"
	"sallyport/internal/diag"
)

func compileJWTKeys(spec *JWTSpec, src Sources, p *diag.List) (keys []jwtKey) {
	for i, alg := range spec.Algorithms {
		if !slices.Contains(jwt.Algorithms(), alg) {
			p.At("algorithms").Index(i).Errorf("unknown algorithm %q; known are %s", alg,
				strings.Join(jwt.Algorithms(), ", "))
		}
	}
	compileEachKey(spec.Keys, p, func(k *KeySpec, info keyInfo, p *diag.List) {
		key, alg, ok := loadJWTKey(k, src, spec.Algorithms, p)
		if !ok {
			return
		}
		if len(spec.Algorithms) > 0 && !slices.Contains(spec.Algorithms, alg) {
			p.Errorf("is for %s, which algorithms does not list", alg)
			return
		}
		keys = append(keys, newJWTKey(info, alg, key))
	})
	if spec.JWKS != "" && !isURLAddress(spec.JWKS) {
		keys = append(keys, loadJWKS(spec, src, p.At("jwks"))...)
	}
	return keys
}

func isURLAddress(text string) bool { return strings.Contains(text, "://") }

// compileIssuer returns the key set that is fetched for the caller, or nil if the file has its keys.
func compileIssuer(spec *JWTSpec, src Sources, p *diag.List) *keyset.Set {
	var from keyset.Source
	switch {
	case isURLAddress(spec.JWKS):
		from.Address = spec.JWKS
		if err := keyset.CheckAddress(spec.JWKS); err != nil {
			p.At("jwks").Errorf("%v", err)
			return nil
		}
	case len(spec.Keys) == 0 && spec.JWKS == "" && spec.Issuer != "":
		from.Issuer = spec.Issuer
		if err := keyset.CheckAddress(spec.Issuer); err != nil || strings.Contains(spec.Issuer, "?") {
			p.At("issuer").Errorf("is not an https address, so its keys cannot be fetched: set jwks or keys")
			return nil
		}
	default:
		if spec.CA != "" {
			p.At("ca").Errorf("is only for keys that are fetched, and these are in files")
		}
		return nil
	}
	if spec.CA != "" {
		if from.CA = string(certs.Roots(spec.CA, src.Dir, src.Now, p.At("ca"))); from.CA == "" {
			return nil
		}
	}
	set, err := src.reuseKeySet(from)
	if err != nil {
		p.At("ca").Errorf("%v", err)
	}
	return set
}

func newJWTKey(info keyInfo, alg string, key any) jwtKey {
	if secret, ok := key.([]byte); ok {
		info.secret = sha256.Sum256(secret)
	}
	return jwtKey{info, alg, key, sha256.Sum256(append([]byte(alg+"\n"), keyMaterial(key)...))}
}

// keyMaterial returns the bytes of a secret, or the DER encoding of a public key.
func keyMaterial(key any) []byte {
	if secret, ok := key.([]byte); ok {
		return secret
	}
	public, _ := x509.MarshalPKIXPublicKey(key) // of a type that was checked
	return public
}

// loadJWTKey reads a secret for HS*, or a public key in PEM.
func loadJWTKey(k *KeySpec, src Sources, algorithms []string, p *diag.List) (key any, alg string, ok bool) {
	if k.Alg != "" && !slices.Contains(jwt.Algorithms(), k.Alg) {
		p.At("alg").Errorf("unknown algorithm %q; known are %s", k.Alg, strings.Join(jwt.Algorithms(), ", "))
		return nil, "", false
	}
	public, text, ok := src.loadPublicOrSecret(k, p)
	switch {
	case !ok:
		return nil, "", false
	case public != nil:
		alg, err := keyset.BindPublicKey(public, k.Alg, algorithms)
		if err != nil {
			p.Errorf("%v", err)
		}
		return public, alg, err == nil
	}
	alg, err := jwt.BindSecret(text, k.Alg, algorithms)
	if err != nil {
		p.Errorf("%v", err)
	}
	return text, alg, err == nil
}

// loadPublicOrSecret reads a public key in PEM, or else a secret. PEM is never used as a secret: otherwise an
// attacker could sign by HS256 with the public key.
func (s Sources) loadPublicOrSecret(k *KeySpec, p *diag.List) (public any, secret []byte, ok bool) {
	text, ok := s.loadKeyText(k, publicMode, p)
	if !ok {
		return nil, nil, false
	}
	if !bytes.Contains(text, []byte("-----BEGIN")) {
		text, ok = s.loadKeyText(k, secretMode, p)
		return nil, text, ok
	}
	public, err := parsePublicKey(text)
	if err != nil {
		p.Errorf("%v", err)
	}
	return public, nil, err == nil
}

// parsePublicKey reads a public key (RFC 5280 SubjectPublicKeyInfo), or that of a certificate.
func parsePublicKey(text []byte) (any, error) {
	block, rest := pem.Decode(text)
	if block == nil {
		return nil, errors.New("is not valid PEM")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("has more than one PEM block: leave one key")
	}
	switch {
	case block.Type == "PUBLIC KEY":
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, errors.New("has a public key that does not parse")
		}
		return key, nil
	case block.Type == "CERTIFICATE":
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, errors.New("has a certificate that does not parse")
		}
		return cert.PublicKey, nil
	case strings.HasSuffix(block.Type, "PRIVATE KEY"):
		return nil, errors.New("is a private key: write the public key instead")
	}
	return nil, errors.New("is not a PEM block of type PUBLIC KEY or CERTIFICATE")
}

// loadJWKS reads a file with a key set (RFC 7517 5). Keys for an algorithm that the caller does not list are
// skipped; any other key that cannot be used is an error.
func loadJWKS(spec *JWTSpec, src Sources, p *diag.List) (keys []jwtKey) {
	data, err := src.readKeyFile(src.resolvePath(spec.JWKS), publicMode)
	if err != nil {
		p.Errorf("%v", err)
		return nil
	}
	set, err := keyset.Parse(data, spec.Algorithms)
	if err != nil {
		p.Errorf("%v", err)
		return nil
	}
	for i, k := range set {
		switch {
		case k.Err != nil:
			p.Errorf("keys[%d] %v", i, k.Err)
		case len(spec.Algorithms) == 0 || slices.Contains(spec.Algorithms, k.Alg):
			info := keyInfo{id: cmp.Or(k.ID, fmt.Sprintf("keys[%d]", i)), named: k.ID != ""}
			keys = append(keys, newJWTKey(info, k.Alg, k.Public))
		}
	}
	if len(keys) == 0 {
		p.Errorf("has no key for any of algorithms")
	}
	return keys
}
