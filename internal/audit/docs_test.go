package audit_test

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sallyport/internal/audit"
)

// TestDocs_FieldsDecisionsEvents compares docs/audit.md with the fields, decisions and events in the code.
func TestDocs_FieldsDecisionsEvents(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## Lines\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var documented []string
	for _, row := range regexp.MustCompile("(?m)^\\| (`[^|]+) \\|").FindAllStringSubmatch(section, -1) {
		for _, name := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[1], -1) {
			documented = append(documented, name[1])
		}
	}
	// The heads of their tables are not entries.
	documented = slices.DeleteFunc(documented, func(s string) bool { return s == "decision" || s == "event" })
	there := []string{"prev", "hash"}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[audit.Line]()) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name != "decision" && name != "event" {
			there = append(there, name)
		}
	}
	for _, d := range []audit.Decision{audit.Allowed, audit.Void, audit.Refused, audit.Replayed, audit.Ignored, audit.Handshake, audit.Observed} {
		there = append(there, string(d))
	}
	for _, e := range []audit.Event{
		audit.Begun, audit.Checkpoint, audit.Removed, audit.Cut, audit.Resumed, audit.Suppressed,
		audit.Started, audit.Stopped,
		audit.HandedOver, audit.Reloaded, audit.Refusals,
	} {
		there = append(there, string(e))
	}
	slices.Sort(documented)
	slices.Sort(there)
	if !slices.Equal(documented, there) {
		t.Errorf("the manual has %q\nthere are       %q", documented, there)
	}
}
