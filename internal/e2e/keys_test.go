package e2e_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/auth/webhook"
)

// madeKey is a key that "sallyport keys new" makes for a caller.
type madeKey struct {
	scheme, alg string
	line        string // printed line of YAML
}

func (k *madeKey) name() string { return strings.Trim(k.scheme+"-"+k.alg, "-") }

// TestKeysNew_EveryKind makes a key of each kind, signs a delivery with "sallyport sign", and sends it.
func TestKeysNew_EveryKind(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var keys []*madeKey
	for _, preset := range webhook.Presets() {
		keys = append(keys, &madeKey{scheme: preset})
	}
	for _, k := range []string{
		"standard-webhooks ed25519", "svix ed25519", "token ", "jwt ", "jwt HS256", "jwt RS256", "jwt ES256", "jwt EdDSA",
		"signature ", "signature ed25519", "signature ecdsa-p256-sha256", "signature hmac-sha256",
	} {
		scheme, alg, _ := strings.Cut(k, " ")
		keys = append(keys, &madeKey{scheme: scheme, alg: alg})
	}
	var senders []*sender
	for _, k := range keys {
		k.makeKey(t, dir)
		senders = append(senders, &sender{name: k.name(), caller: k.callerYAML()})
	}
	url, client := startServer(t, dir, senders)
	for _, k := range keys {
		at := url + "/hooks/" + k.name()
		body := fmt.Sprintf(`{"type":"push","webhookTimestamp":%d}`, time.Now().UnixMilli())
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, at, strings.NewReader(body))
		mustSucceed(t, err)
		for line := range strings.Lines(k.sign(t, dir, at, body)) {
			name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
			req.Header.Set(name, value)
		}
		req.Header.Set("Content-Type", "application/json")
		res, err := client.Do(req)
		mustSucceed(t, err)
		mustSucceed(t, res.Body.Close())
		if res.StatusCode != http.StatusOK {
			t.Errorf("%s: status %d", k.name(), res.StatusCode)
		}
	}
}

// makeKey creates the key in a file named like the caller.
func (k *madeKey) makeKey(t *testing.T, dir string) {
	t.Helper()
	args := []string{"keys", "new", k.scheme, "--out", k.name(), "--id", "sender"}
	if k.alg != "" {
		args = append(args, "--alg", k.alg)
	}
	out, err := program(t, dir, args...).Output()
	if err != nil {
		t.Fatalf("%s: %v", k.name(), err)
	}
	k.line = strings.TrimPrefix(strings.TrimSpace(string(out)), "- ")
	secret, err := os.ReadFile(filepath.Join(dir, k.name()))
	mustSucceed(t, err)
	info, err := os.Stat(filepath.Join(dir, k.name()))
	mustSucceed(t, err)
	if info.Mode().Perm() != 0o600 || strings.Contains(string(out), strings.TrimSpace(string(secret))) {
		t.Errorf("%s: mode %o, and printed %s", k.name(), info.Mode().Perm(), out)
	}
	if err := program(t, dir, args...).Run(); err == nil {
		t.Errorf("%s: made a second time", k.name())
	}
	if again, err := os.ReadFile(filepath.Join(dir, k.name())); err != nil || string(again) != string(secret) {
		t.Errorf("%s: written over", k.name())
	}
}

// callerYAML returns the caller in YAML, with the printed line.
func (k *madeKey) callerYAML() string {
	switch k.scheme {
	case "token":
		return "token: {keys: [" + k.line + "]}"
	case "jwt":
		return fmt.Sprintf("jwt: {issuer: %q, audience: %q, keys: [%s]}", issuer+k.name(), audience, k.line)
	case "signature":
		return `signature: {authority: ["localhost:$PORT"], keys: [` + k.line + "]}"
	}
	return "hmac: {scheme: " + k.scheme + ", keys: [" + k.line + "]}"
}

func (k *madeKey) sign(t *testing.T, dir, url, body string) (headers string) {
	t.Helper()
	args := []string{"sign", "--scheme", k.scheme, "--key-file", k.name(), "--data", body}
	switch k.scheme {
	case "jwt":
		args = append(args, "--kid", "sender", "--issuer", issuer+k.name(), "--audience", audience)
		if k.alg != "" {
			args = append(args, "--alg", k.alg)
		}
	case "signature":
		args = append(args, "--kid", "sender", "--url", url)
	}
	out, err := program(t, dir, args...).Output()
	if err != nil {
		t.Fatalf("%s: %v", k.name(), err)
	}
	return string(out)
}
