package retention_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"sallyport/internal/retention"
)

// TestFailures_AreLoggedOnChange has work fail many times: the log has the first failure, another one, and the recovery
// with the count.
func TestFailures_AreLoggedOnChange(t *testing.T) {
	t.Parallel()
	var text bytes.Buffer
	note := retention.NewFailures(slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	})), "pruning")
	ctx, cancel := context.WithCancel(t.Context())
	for _, errs := range []struct {
		text  string
		times int
	}{{"", 2}, {"broken", 100}, {"full", 50}, {"", 3}, {"broken", 1}} {
		for range errs.times {
			var err error
			if errs.text != "" {
				err = errors.New(errs.text)
			}
			note(ctx, err)
		}
	}
	cancel()
	note(ctx, errors.New("canceled"))
	note(ctx, nil)
	want := []string{
		`level=ERROR msg="retention fails; it is tried again" work=pruning error=broken`,
		`level=ERROR msg="retention fails; it is tried again" work=pruning error=full`,
		`level=INFO msg="retention works again" work=pruning failures=150`,
		`level=ERROR msg="retention fails; it is tried again" work=pruning error=broken`,
	}
	if got := strings.Split(strings.TrimSpace(text.String()), "\n"); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}
