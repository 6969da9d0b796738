package hook

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"maps"
	"slices"
)

// Digest returns a digest that differs between two versions of the hook. The server and the process that starts
// commands each read the configuration file, and a hook runs only if both have the same version.
func (h *Hook) Digest() string { return h.digest }

// Digest returns a digest of all hooks, which differs if any hook differs.
func Digest(hooks map[string]*Hook) string {
	all := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(hooks)) {
		_, _ = io.WriteString(all, hooks[name].digest) // all digests have the same length
	}
	return hex.EncodeToString(all.Sum(nil))
}

func digestSpec(name string, s *Spec) string {
	// The spec has only strings, numbers and maps of them, and JSON sorts the maps. So Marshal does not fail, and the
	// same hook gives the same text.
	text, _ := json.Marshal(struct {
		Name string
		Spec *Spec
	}{name, s})
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}
