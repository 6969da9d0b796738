package runner

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
)

// Digest tells this hook from what the same name stands for in another version
// of the file. The server and the process that starts commands each read the
// file themselves, and nothing may run that only one of them knows.
func (h *Hook) Digest() string { return h.digest }

func digest(name string, s *HookSpec) string {
	// Strings, numbers and maps of them, which JSON sorts: no error, and the
	// same text for the same hook.
	text, _ := json.Marshal(struct {
		Name string
		Spec *HookSpec
	}{name, s})
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}
