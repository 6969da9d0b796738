package jwt_test

import (
	"encoding/json"
	"strings"
	"testing"

	"sallyport/auth/jwt"
)

// TestCheckClaims_Mismatch checks that the error has the claim, its value and what the caller requires, and that
// a token cannot fill a log with it.
func TestCheckClaims_Mismatch(t *testing.T) {
	claims := map[string]any{
		"project_id": "16", "run": json.Number("7"), "long": strings.Repeat("x", 1000), "odd": "a\u202eb\x7f",
		"kubernetes.io": map[string]any{"namespace": "ci"}, "null": nil,
	}
	for name, row := range map[string]struct {
		rules map[string]any
		want  string
	}{
		"string":  {map[string]any{"project_id": "15"}, `claim project_id is "16", but the caller requires "15"`},
		"type":    {map[string]any{"run": "7"}, `claim run is 7, but the caller requires "7"`},
		"missing": {map[string]any{"ref": "main"}, `claim ref is missing or null, but the caller requires "main"`},
		"null":    {map[string]any{"null": true}, `claim null is missing or null, but the caller requires true`},
		"nested": {
			map[string]any{"kubernetes.io": map[string]any{"namespace": "prod"}},
			`claim kubernetes.io.namespace is "ci", but the caller requires "prod"`,
		},
		"no object": {
			map[string]any{"run": map[string]any{"id": 1}}, `claim run is 7, but the caller requires {"id":1}`,
		},
		"long": {
			map[string]any{"long": "y"}, `claim long is "` + strings.Repeat("x", 79) + `…, but the caller requires "y"`,
		},
		"not printable": {map[string]any{"odd": "c"}, `claim odd is "a?b?", but the caller requires "c"`},
	} {
		if err := jwt.CheckClaims(row.rules, claims); err == nil || err.Error() != row.want {
			t.Errorf("%s: got %v, want %s", name, err, row.want)
		}
	}
	if err := jwt.CheckClaims(map[string]any{"project_id": "16", "run": 7}, claims); err != nil {
		t.Error(err)
	}
	want := `claim aud is ["x"], but the caller requires "y"`
	if err := jwt.CheckAudience(map[string]any{"aud": []any{"x"}}, "y"); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
