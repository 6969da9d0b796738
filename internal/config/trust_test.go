package config_test

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sallyport/internal/config"
	"sallyport/internal/testenv"
)

// trustedFiles are all files that testdata/all.yaml names, and a key set.
func trustedFiles() []string {
	return []string{
		"certs/server.pem", "certs/server.key", "certs/clients.pem", "certs/clients.crl", "certs/partner.pem", "certs/partner.crl",
		"certs/ca.pem", "secrets/github", "secrets/ci.pem", "secrets/token", "secrets/audit.pem", "secrets/jwks.json",
	}
}

// writeTrusting makes a folder with a configuration that names every kind of trusted file.
func writeTrusting(t *testing.T) (dir string, found []config.Diagnostic) {
	t.Helper()
	dir = makeFiles(t)
	x := base64.RawURLEncoding.EncodeToString(make([]byte, 31)) + "AQ"
	writeFile(t, filepath.Join(dir, "secrets", "jwks.json"),
		`{"keys": [{"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "kid": "1", "x": "`+x[:43]+`"}]}`, 0o644)
	text := strings.Replace(readTestdata(t, "all.yaml"), "\ncallers:\n", "\ncallers:\n"+
		"  set: {jwt: {issuer: https://set.example, jwks: secrets/jwks.json, audience: https://hooks.example.com, claims: {sub: x}}}\n", 1)
	c, found := load(t, dir, text)
	if c == nil {
		t.Fatal(found)
	}
	return dir, found
}

// TestTrustedFiles_FolderOfOthers: a user that can change a key, a CA, a CRL or a key set decides which callers are
// trusted.
func TestTrustedFiles_FolderOfOthers(t *testing.T) {
	t.Parallel()
	for _, folder := range []string{"certs", "secrets"} {
		dir, _ := writeTrusting(t)
		mustSucceed(t, os.Chmod(filepath.Join(dir, folder), 0o777))
		c, found := config.Load(filepath.Join(dir, "sallyport.yaml"), env())
		if c != nil {
			t.Errorf("a configuration with an open folder %s was loaded", folder)
		}
		for _, file := range trustedFiles() {
			if strings.HasPrefix(file, folder) && !hasError(found, filepath.Base(file)+": chmod go-w") {
				t.Errorf("nothing is said of %s: %q", file, found)
			}
		}
	}
}

func TestTrustedFiles_OtherOwner(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		testenv.Skip(t, "whose keys are refused, because only root may give files away")
	}
	for _, file := range trustedFiles() {
		dir, _ := writeTrusting(t)
		mustSucceed(t, os.Lchown(filepath.Join(dir, file), 65534, -1))
		c, found := config.Load(filepath.Join(dir, "sallyport.yaml"), env())
		if c != nil || !hasError(found, filepath.Join(dir, file)+" belongs to another user than root and 0") {
			t.Errorf("%s of another user: %q", file, found)
		}
	}
}

func hasError(found []config.Diagnostic, text string) bool {
	return slices.ContainsFunc(found, func(d config.Diagnostic) bool { return !d.Warning && strings.Contains(d.Text, text) })
}

func mustSucceed(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
