package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sallyport/internal/config"
)

// TestLoadHooks_ExpressionPlace reports a problem in an expression at its line and column, in each form of text.
func TestLoadHooks_ExpressionPlace(t *testing.T) {
	const head = "state: state\ncallers: {}\nhooks:\n  h:\n    dangerously_unauthenticated: true\n    command: [/bin/true]\n"
	for text, want := range map[string]string{
		"    when: body.a && bdy.x\n":                        ":7:21: ",
		"    when: 'body[''a''] == 1 && bdy.x'\n":            ":7:32: ",
		"    when: \"body[\\\"a\\\"] == 1 && bdy.x\"\n":      ":7:32: ",
		"    when: \"body['\\u0061'] == 1 && bdy.x\"\n":      ":7:35: ",
		"    when: |\n      body.a &&\n\n        bdy.x\n":    ":10:9: ",
		"    when: >- # why\n      body.a &&\n      bdy.x\n": ":9:7: ",
		"    when: body.a &&\n      bdy.x\n":                 ":8:7: ",
		"    params: {x: {expr: bdy.x, match: x}}\n":         ":7:24: ",
	} {
		name := filepath.Join(t.TempDir(), "sallyport.yaml")
		if err := os.WriteFile(name, []byte(head+text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _, found := config.LoadHooks(name)
		ok := false
		for _, d := range found {
			ok = ok || strings.HasPrefix(d.String(), name+want) && strings.Contains(d.Text, "'bdy'")
		}
		if !ok {
			t.Errorf("%q: got %v, want %s", text, found, want)
		}
	}
}
