package importer_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"sallyport/internal/importer"
)

// FuzzImport imports any file. What comes out is YAML, and a hook of the file is in it or is named as refused.
func FuzzImport(f *testing.F) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		for hook := range strings.SplitSeq(string(text), "\n- id:") {
			f.Add([]byte("- id:" + hook))
		}
	}
	f.Add([]byte(`[{"id":"a","execute-command":"x",}]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		result, err := importer.Import(data, "secrets")
		if err != nil {
			return
		}
		var config struct {
			Hooks map[string]any `yaml:"hooks"`
		}
		if err := yaml.Unmarshal(result.YAML, &config); err != nil {
			t.Fatalf("%v\n%s", err, result.YAML)
		}
		if len(config.Hooks) == 0 && result.Refused() == 0 {
			t.Errorf("no hook, and none is refused: %s", result.YAML)
		}
	})
}
