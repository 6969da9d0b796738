package auth

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/MicahParks/jwkset"

	"sallyport/internal/problem"
	"sallyport/internal/strictjson"
)

const (
	minRSA = 2048
	maxRSA = 8192 // what is longer only costs time
)

// Which algorithms a type of key may be for (RFC 7518 3.1). The first is its default.
func hsAlgorithms() []string { return []string{"HS256", "HS384", "HS512"} }

func rsaAlgorithms() []string {
	return []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
}

func knownAlgorithms() []string {
	return append(append(hsAlgorithms(), rsaAlgorithms()...), "ES256", "ES384", "ES512", "EdDSA")
}

func compileJWTKeys(spec *JWTSpec, src Sources, p *problem.List) (keys []jwtKey) {
	for i, alg := range spec.Algorithms {
		if !slices.Contains(knownAlgorithms(), alg) {
			p.At("algorithms").Index(i).Errorf("%q is none of %s", alg, strings.Join(knownAlgorithms(), ", "))
		}
	}
	if len(spec.Keys) == 0 && spec.JWKS == "" {
		p.Errorf("needs keys or a jwks file")
	}
	eachKey(spec.Keys, p, func(k *KeySpec, info keyInfo, p *problem.List) {
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
	if spec.JWKS != "" {
		keys = append(keys, loadJWKS(spec, src, p.At("jwks"))...)
	}
	return keys
}

func newJWTKey(info keyInfo, alg string, key any) jwtKey {
	material, secret := key.([]byte)
	if !secret {
		material, _ = x509.MarshalPKIXPublicKey(key) // of a type that checkPublic let through
	}
	return jwtKey{info, alg, key, sha256.Sum256(append([]byte(alg+"\n"), material...))}
}

// loadJWTKey reads a secret for HS*, or a public key in PEM. What is PEM is
// never a secret: that is how HS256 "verifies" with a public key.
func loadJWTKey(k *KeySpec, src Sources, algorithms []string, p *problem.List) (key any, alg string, ok bool) {
	if k.Alg != "" && !slices.Contains(knownAlgorithms(), k.Alg) {
		p.At("alg").Errorf("%q is none of %s", k.Alg, strings.Join(knownAlgorithms(), ", "))
		return nil, "", false
	}
	text, ok := src.load(k, publicMode, p)
	if !ok {
		return nil, "", false
	}
	if bytes.Contains(text, []byte("-----BEGIN")) {
		public, err := parsePublic(text)
		if err == nil {
			alg, err = bindPublic(public, k.Alg, algorithms)
		}
		if err != nil {
			p.Errorf("%v", err)
		}
		return public, alg, err == nil
	}
	if text, ok = src.load(k, secretMode, p); !ok {
		return nil, "", false
	}
	alg = orDefault(k.Alg, oneOf(hsAlgorithms(), algorithms))
	i := slices.Index(hsAlgorithms(), alg)
	if i < 0 {
		p.Errorf("is no PEM, but %s needs a public key in PEM", orDefault(alg, "more than one of algorithms fits, so alg"))
		return nil, "", false
	}
	if least := []int{32, 48, 64}[i]; len(text) < least { // RFC 7518 3.2
		p.Errorf("is %d bytes long, and must be at least %d for %s", len(text), least, alg)
		return nil, "", false
	}
	return text, alg, true
}

// oneOf returns the algorithm of a family that the list picks: its first if the
// list is empty, and nothing if the list leaves a choice.
func oneOf(family, list []string) string {
	if len(list) == 0 {
		return family[0]
	}
	picked := ""
	for _, alg := range list {
		if slices.Contains(family, alg) {
			if picked != "" {
				return ""
			}
			picked = alg
		}
	}
	return picked
}

// parsePublic reads one public key (RFC 5280 SubjectPublicKeyInfo) or the one
// of a certificate.
func parsePublic(text []byte) (any, error) {
	block, rest := pem.Decode(text)
	if block == nil {
		return nil, errors.New("is not valid PEM")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("holds more than one PEM block, so which key is meant is not clear")
	}
	switch {
	case block.Type == "PUBLIC KEY":
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, errors.New("holds a public key that does not parse")
		}
		return key, nil
	case block.Type == "CERTIFICATE":
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, errors.New("holds a certificate that does not parse")
		}
		return cert.PublicKey, nil
	case strings.HasSuffix(block.Type, "PRIVATE KEY"):
		return nil, errors.New("is a private key; only the public one belongs here")
	}
	return nil, errors.New("is not a PEM block of type PUBLIC KEY or CERTIFICATE")
}

// bindPublic returns the one algorithm that the key is for: what is asked for
// if the key can do it, else what its type and the list of algorithms say.
func bindPublic(key any, asked string, algorithms []string) (string, error) {
	var family []string
	switch k := key.(type) {
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < minRSA || bits > maxRSA {
			return "", fmt.Errorf("is an RSA key of %d bits, and must have %d to %d", bits, minRSA, maxRSA)
		}
		if k.E < 3 || k.E%2 == 0 {
			return "", errors.New("is an RSA key with an exponent that is even or below 3")
		}
		family = rsaAlgorithms()
	case *ecdsa.PublicKey:
		name := map[string]string{"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}[k.Params().Name]
		if name == "" {
			return "", errors.New("is on a curve that is not P-256, P-384 or P-521")
		}
		family = []string{name}
	case ed25519.PublicKey:
		family = []string{"EdDSA"}
	default:
		return "", errors.New("is not an RSA, ECDSA or Ed25519 key")
	}
	if asked != "" && !slices.Contains(family, asked) {
		return "", fmt.Errorf("is a key for %s, not for %s", strings.Join(family, ", "), asked)
	}
	if asked == "" && len(family) > 1 {
		if asked = oneOf(family, algorithms); asked == "" {
			return "", errors.New("fits none or more than one of algorithms: say alg")
		}
	}
	return orDefault(asked, family[0]), nil
}

// loadJWKS reads a file with a key set (RFC 7517 5). Keys for an algorithm that
// the caller's list leaves out are skipped, anything odd is an error.
func loadJWKS(spec *JWTSpec, src Sources, p *problem.List) (keys []jwtKey) {
	data, err := readKeyFile(src.path(spec.JWKS), publicMode)
	if err != nil {
		p.Errorf("%v", err)
		return nil
	}
	set, err := strictjson.Decode(data)
	if err != nil {
		p.Errorf("%v", err)
		return nil
	}
	entry, _ := strictjson.Lookup(set, "keys")
	list, _ := entry.([]any)
	if len(list) == 0 || len(list) > maxKeys {
		p.Errorf("holds no key set of 1 to %d keys", maxKeys)
	}
	kids := map[string]bool{}
	for i, member := range list {
		key, info, alg, err := parseJWK(member, spec.Algorithms)
		switch {
		case err != nil:
			p.Errorf("keys[%d] %v", i, err)
		case info.named && kids[info.id]:
			p.Errorf("keys[%d] has the kid of another key", i)
		case len(spec.Algorithms) == 0 || slices.Contains(spec.Algorithms, alg):
			info.id = orDefault(info.id, fmt.Sprintf("keys[%d]", i))
			keys = append(keys, newJWTKey(info, alg, key))
		}
		kids[info.id] = true
	}
	if len(keys) == 0 && len(list) > 0 {
		p.Errorf("holds no key for any of algorithms")
	}
	return keys
}

// parseJWK reads one key, from exactly the members that matter: certificates
// and addresses of keys are not looked at.
func parseJWK(member any, algorithms []string) (key any, info keyInfo, alg string, err error) {
	fields, ok := member.(map[string]any)
	if !ok {
		return nil, info, "", errors.New("is not an object")
	}
	for _, name := range []string{"k", "d", "p", "q", "dp", "dq", "qi", "oth"} {
		if _, there := fields[name]; there {
			return nil, info, "", errors.New("is a secret or private key, which does not belong in a key set")
		}
	}
	text := map[string]string{}
	for _, name := range []string{"kty", "use", "alg", "kid", "crv", "x", "y", "n", "e"} {
		if v, there := fields[name]; there {
			if text[name], ok = v.(string); !ok || text[name] == "" || name == "kid" && len(text[name]) > maxField {
				return nil, info, "", fmt.Errorf("has a %s that is not a string, or is empty or too long", name)
			}
		}
	}
	ops, there := fields["key_ops"]
	if list, _ := ops.([]any); there && !slices.Contains(list, any("verify")) || text["use"] != "" && text["use"] != "sig" {
		return nil, info, "", errors.New("is not for verifying signatures")
	}
	info = keyInfo{id: text["kid"], named: text["kid"] != ""}
	jwk, err := jwkset.NewJWKFromMarshal(jwkset.JWKMarshal{
		KTY: jwkset.KTY(text["kty"]), CRV: jwkset.CRV(text["crv"]), X: text["x"], Y: text["y"], N: text["n"], E: text["e"],
	}, jwkset.JWKMarshalOptions{}, jwkset.JWKValidateOptions{StrictPadding: true, SkipMetadata: true})
	if err != nil {
		return nil, info, "", errors.New("is not a public RSA, EC or OKP key that parses")
	}
	// A list that leaves the choice to RSA keys without alg does not break the
	// set: RS256 is what such keys are for in practice.
	if text["alg"] == "" && text["kty"] == "RSA" && oneOf(rsaAlgorithms(), algorithms) == "" {
		text["alg"] = "RS256"
	}
	alg, err = bindPublic(jwk.Key(), text["alg"], algorithms)
	return jwk.Key(), info, alg, err
}
