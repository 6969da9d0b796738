package jwt

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"sallyport/auth/jwt/keyset"
)

// secretAlgorithms are those of secrets (RFC 7518 3.1). The first is the default.
func secretAlgorithms() []string { return []string{"HS256", "HS384", "HS512"} }

// Algorithms returns all algorithms that a key may be for.
func Algorithms() []string { return append(secretAlgorithms(), keyset.Algorithms()...) }

// BindSecret returns the one algorithm that a secret is for: the one that is asked for, or else the one that
// the caller's list of algorithms leaves. [keyset.Bind] does the same for public keys.
func BindSecret(secret []byte, asked string, algorithms []string) (string, error) {
	alg := cmp.Or(asked, keyset.PickAlgorithm(secretAlgorithms(), algorithms))
	i := slices.Index(secretAlgorithms(), alg)
	isForSecrets := func(alg string) bool { return slices.Contains(secretAlgorithms(), alg) }
	switch {
	case alg == "" && slices.ContainsFunc(algorithms, isForSecrets):
		return "", errors.New("is a secret, and several of algorithms fit it: set alg")
	case i < 0:
		return "", fmt.Errorf("is not PEM; %s needs a public key in PEM", cmp.Or(alg, strings.Join(algorithms, ", ")))
	}
	if least := []int{32, 48, 64}[i]; len(secret) < least { // RFC 7518 3.2
		return "", fmt.Errorf("is %d bytes long, and must have at least %d for %s", len(secret), least, alg)
	}
	return alg, nil
}
