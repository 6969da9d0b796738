package runner_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"sallyport/runner"
)

// TestPhases_Documented compares the table of transitions with the picture in docs/architecture.md.
func TestPhases_Documented(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "```mermaid\nstateDiagram-v2\n")
	picture, _, _ := strings.Cut(rest, "```")
	var documented []string
	for line := range strings.Lines(picture) {
		transition, _, _ := strings.Cut(line, ": ")
		documented = append(documented, strings.TrimSpace(transition))
	}
	slices.Sort(documented)
	if table := slices.Sorted(slices.Values(runner.Transitions())); !slices.Equal(documented, table) {
		t.Errorf("docs/architecture.md has\n%s\nand the table has\n%s",
			strings.Join(documented, "\n"), strings.Join(table, "\n"))
	}
}
