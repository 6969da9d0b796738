package hook

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"maps"
	"slices"
)

// Digest tells this hook from what the same name stands for in another version
// of the file. The server and the process that starts commands each read the
// file themselves, and nothing may run that only one of them knows.
func (h *Hook) Digest() string { return h.digest }

// Digest tells one version of all hooks from another.
func Digest(hooks map[string]*Hook) string {
	all := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(hooks)) {
		_, _ = io.WriteString(all, hooks[name].digest) // each is as long as the other
	}
	return hex.EncodeToString(all.Sum(nil))
}

func digestSpec(name string, s *Spec) string {
	// Strings, numbers and maps of them, which JSON sorts: no error, and the
	// same text for the same hook.
	text, _ := json.Marshal(struct {
		Name string
		Spec *Spec
	}{name, s})
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}
