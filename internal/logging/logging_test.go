package logging_test

import (
	"bufio"
	"encoding/json"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"sallyport/internal/logging"
)

// noEnv is an environment without variables.
func noEnv(string) (string, bool) { return "", false }

// pipe returns a log and the pipe that it is written to. Only the test reads the pipe.
func pipe(t *testing.T) (log *slog.Logger, out *logging.Output, r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	log, out = logging.New(w, noEnv)
	return log, out, r, w
}

// TestOutput_StoppedReader: no line waits for a reader that does not read. When it continues, it gets the queued lines
// in order, and the number of those that it missed.
func TestOutput_StoppedReader(t *testing.T) {
	t.Parallel()
	log, out, r, w := pipe(t)
	const n = 50_000
	for i := range n {
		log.Info("line", "i", i, "padding", strings.Repeat("x", 100))
	}
	done := make(chan struct{})
	go func() {
		out.Close() // waits for the queued lines, which are read now
		_ = w.Close()
		close(done)
	}()
	next, dropped := 0, 0
	for lines := bufio.NewScanner(r); lines.Scan(); {
		var line struct {
			Level, Msg string
			I, Count   int
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatalf("%s: %v", lines.Bytes(), err)
		}
		switch {
		case line.Msg == "line" && line.I == next:
			next++
		case strings.HasPrefix(line.Msg, "log lines dropped") && line.Level == "WARN":
			dropped += line.Count
			next += line.Count
		default:
			t.Fatalf("got %+v, want line %d", line, next)
		}
	}
	<-done
	if next != n || dropped == 0 || dropped > n-1000 {
		t.Errorf("%d lines, %d of them dropped", next, dropped)
	}
	if out.Dropped() != dropped {
		t.Errorf("%d lines dropped, and %d are counted", dropped, out.Dropped())
	}
}

// TestOutput_CloseWithoutReader: a process ends although its log is not read.
func TestOutput_CloseWithoutReader(t *testing.T) {
	t.Parallel()
	log, out, _, w := pipe(t)
	for range 10_000 {
		log.Info("line", "padding", strings.Repeat("x", 100))
	}
	done := make(chan struct{})
	go func() {
		out.Close()
		logging.PrintLast(w, "end")
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("it waits for a reader")
	}
}

// TestOutput_SlowReader: a reader that is always too slow does not get a line about dropped lines after each other
// line.
func TestOutput_SlowReader(t *testing.T) {
	t.Parallel()
	log, out, r, w := pipe(t)
	lines := bufio.NewReader(r)
	read, notes := 0, 0
	next := func() bool {
		text, err := lines.ReadString('\n')
		if err == nil {
			read++
			notes += strings.Count(text, "log lines dropped")
		}
		return err == nil
	}
	for range 2000 {
		for range 20 {
			log.Info("line", "padding", strings.Repeat("x", 200))
		}
		next()
	}
	go func() { out.Close(); _ = w.Close() }()
	for next() {
	}
	if notes == 0 || notes > 10 {
		t.Errorf("%d of %d lines are about others", notes, read)
	}
}
