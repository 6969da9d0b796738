package keyset

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/MicahParks/jwkset"

	"sallyport/internal/strictjson"
)

const (
	minRSA = 2048
	maxRSA = 8192 // a longer key only costs time

	maxKeys = 64 // of one set
	maxKid  = 256
)

// Key is a public key of a set, with the one algorithm that it is for (RFC 8725 3.1).
type Key struct {
	ID     string // its kid, or empty
	Alg    string
	Public any // *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey

	Err error // why it must not be used; then Alg and Public are not set
}

// ErrOtherUse is the error of a key that is not for signatures.
var ErrOtherUse = errors.New("is not for verifying signatures")

// RSAAlgorithms returns the algorithms that an RSA key may be for (RFC 7518 3.1), the usual one first.
func RSAAlgorithms() []string { return []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"} }

// Algorithms returns all algorithms that a public key may be for.
func Algorithms() []string { return append(RSAAlgorithms(), "ES256", "ES384", "ES512", "EdDSA") }

// PickAlgorithm returns the one algorithm of a family that is in the list. It returns the first of the family
// if the list is empty, and nothing if the list has none or several.
func PickAlgorithm(family, list []string) string {
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

// BindPublicKey returns the one algorithm that a public key is for: the one that is asked for, or else the one
// that the type of the key and the list of algorithms leave.
func BindPublicKey(key any, asked string, algorithms []string) (string, error) {
	var family []string
	switch k := key.(type) {
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < minRSA || bits > maxRSA {
			return "", fmt.Errorf("is an RSA key of %d bits, and must have %d to %d", bits, minRSA, maxRSA)
		}
		if k.E < 3 || k.E%2 == 0 {
			return "", errors.New("is an RSA key with an exponent that is even or below 3")
		}
		family = RSAAlgorithms()
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
		if asked = PickAlgorithm(family, algorithms); asked == "" {
			return "", errors.New("fits none or more than one of algorithms: set alg")
		}
	}
	if asked == "" {
		asked = family[0]
	}
	return asked, nil
}

// Parse reads a key set (RFC 7517 5). It returns all keys, each with its error. An RSA key without alg is for
// the one RSA algorithm in the list, or for RS256.
func Parse(data []byte, algorithms []string) ([]Key, error) {
	set, err := strictjson.Decode(data)
	if err != nil {
		return nil, err
	}
	entry, _ := strictjson.Lookup(set, "keys")
	list, _ := entry.([]any)
	if len(list) == 0 || len(list) > maxKeys {
		return nil, fmt.Errorf("is not a key set of 1 to %d keys", maxKeys)
	}
	keys := make([]Key, len(list))
	kids := map[string]int{}
	for i, member := range list {
		if keys[i] = parseJWK(member, algorithms); keys[i].Err == nil && keys[i].ID != "" {
			kids[keys[i].ID]++
		}
	}
	for i, k := range keys {
		if k.Err == nil && kids[k.ID] > 1 { // a token could mean either
			keys[i] = Key{ID: k.ID, Err: errors.New("has the kid of another key")}
		}
	}
	return keys, nil
}

// parseJWK reads one key from exactly the members that are needed. The others, such as certificates and
// addresses, are ignored: jwkset would fetch the address in x5u.
func parseJWK(member any, algorithms []string) Key {
	fields, ok := member.(map[string]any)
	if !ok {
		return Key{Err: errors.New("is not an object")}
	}
	text := map[string]string{}
	for _, name := range []string{"kid", "kty", "use", "alg", "crv", "x", "y", "n", "e"} {
		if v, there := fields[name]; there {
			if text[name], ok = v.(string); !ok || text[name] == "" || name == "kid" && len(text[name]) > maxKid {
				return Key{Err: fmt.Errorf("has a %s that is not a string, or is empty or too long", name)}
			}
		}
	}
	k := Key{ID: text["kid"]}
	for _, name := range []string{"k", "d", "p", "q", "dp", "dq", "qi", "oth"} {
		if _, there := fields[name]; there {
			k.Err = errors.New("is a secret or private key, which does not belong in a key set")
			return k
		}
	}
	ops, there := fields["key_ops"]
	list, _ := ops.([]any)
	if there && !slices.Contains(list, any("verify")) || text["use"] != "" && text["use"] != "sig" {
		k.Err = ErrOtherUse
		return k
	}
	jwk, err := jwkset.NewJWKFromMarshal(jwkset.JWKMarshal{
		KTY: jwkset.KTY(text["kty"]), CRV: jwkset.CRV(text["crv"]), X: text["x"], Y: text["y"], N: text["n"],
		E: text["e"],
	}, jwkset.JWKMarshalOptions{}, jwkset.JWKValidateOptions{StrictPadding: true, SkipMetadata: true})
	if err != nil {
		k.Err = errors.New("is not a public RSA, EC or OKP key that parses")
		return k
	}
	// A list with several RSA algorithms must not make the whole set invalid.
	if text["alg"] == "" && text["kty"] == "RSA" && PickAlgorithm(RSAAlgorithms(), algorithms) == "" {
		text["alg"] = RSAAlgorithms()[0]
	}
	alg, err := BindPublicKey(jwk.Key(), text["alg"], algorithms)
	if err != nil {
		k.Err = err
		return k
	}
	k.Alg, k.Public = alg, jwk.Key()
	return k
}
