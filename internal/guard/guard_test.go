package guard_test

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"sallyport/internal/guard"
)

// TestCall_LogsAPanicOnce returns a panic as an error, with the stack in one line of the log.
func TestCall_LogsAPanicOnce(t *testing.T) {
	t.Parallel()
	var text bytes.Buffer
	log := slog.New(slog.NewJSONHandler(&text, nil))
	n, err := guard.Call(log, func() (int, error) {
		none := make([]int, 0)
		return none[3], nil
	})
	if n != 0 || err == nil || !strings.HasPrefix(err.Error(), "fault: runtime error: index out of range [3]") {
		t.Errorf("%d, %v", n, err)
	}
	if lines := strings.Count(text.String(), "\n"); lines != 1 || !strings.Contains(text.String(), "TestCall_LogsAPanicOnce.func1") {
		t.Errorf("%d lines: %s", lines, &text)
	}
}

// TestCall_ReturnsWhatIsReturned changes nothing where nothing panics.
func TestCall_ReturnsWhatIsReturned(t *testing.T) {
	t.Parallel()
	var text bytes.Buffer
	log, want := slog.New(slog.NewJSONHandler(&text, nil)), errors.New("none")
	if n, err := guard.Call(log, func() (int, error) { return 7, want }); n != 7 || !errors.Is(err, want) || text.Len() > 0 {
		t.Errorf("%d, %v, %s", n, err, &text)
	}
	if err := guard.Do(log, func() error { return want }); !errors.Is(err, want) {
		t.Error(err)
	}
}
