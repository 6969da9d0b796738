package logging_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"sallyport/internal/logging"
)

// writeLines logs to a file, and returns what the file has then.
func writeLines(t *testing.T, stream func(stat *syscall.Stat_t) string, write func(*slog.Logger, *logging.Output)) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		t.Fatal("no stat")
	}
	log, out := logging.New(f, func(name string) (string, bool) { return stream(stat), name == logging.JournalEnv })
	write(log, out)
	out.Close()
	text, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func ownStream(stat *syscall.Stat_t) string { return fmt.Sprintf("%d:%d", stat.Dev, stat.Ino) }

func otherStream(stat *syscall.Stat_t) string { return fmt.Sprintf("%d:%d", stat.Dev, stat.Ino+1) }

// TestJournal_Priorities: each line for the journal begins with its priority, in each format. No line does if the
// variable names another stream, as in a process whose stderr was redirected.
func TestJournal_Priorities(t *testing.T) {
	t.Parallel()
	logLevels := func(log *slog.Logger, out *logging.Output) {
		log.Debug("not written")
		for _, format := range []logging.Format{logging.JSON, logging.Text, logging.Terminal} {
			out.Use(logging.Settings{Level: slog.LevelDebug, Format: format})
			log.Debug("line")
			log.Info("line")
			log.With("part", "store").Warn("line")
			log.Error("line")
			_, _ = fmt.Fprintln(out.Plain(slog.LevelWarn), "plain")
		}
	}
	var got []string
	for line := range strings.Lines(writeLines(t, ownStream, logLevels)) {
		got = append(got, line[:3])
	}
	if want := strings.Repeat("<7> <6> <4> <3> <4> ", 3); strings.Join(got, " ")+" " != want {
		t.Errorf("got %q", got)
	}
	if text := writeLines(t, otherStream, logLevels); strings.Contains(text, "<") {
		t.Errorf("got %s", text)
	}
}

// TestTerminal_FitsALine: the usual lines are short, and text of a sender can neither begin a line nor reach the
// terminal as an escape sequence.
func TestTerminal_FitsALine(t *testing.T) {
	t.Parallel()
	const run = "01a21cee-fe18-7a91-9ab7-dcc7f9bcd0cf"
	text := writeLines(t, otherStream, func(log *slog.Logger, out *logging.Output) {
		out.Use(logging.Settings{Format: logging.Terminal})
		log.Info("request", "request", "X7G2EZSJCPSL7VZ4ZFUFS3F4LR", "address", "127.0.0.1:51286", "method", "POST", "path", "/start",
			"status", 200, "took_ms", 19.334, "hook", "start", "caller", "dev", "key", "dev", "run", run)
		log.Warn("run ended", "run", run, "hook", "start", "caller", "dev", "state", "failed", "took_ms", 61500, "exit_code", 1)
		log.Warn("request", "request", "X7G2EZSJCPSL7VZ4ZFUFS3F4LR", "method", "GET", "path", "/\x1b[2J", "status", 404, "took_ms", 0.1,
			"reason", "not\nfound", "error", "it\x07")
		log.With("issuer", "https://a b/").Error("keys not fetched")
		log.Debug("not written")
	})
	want := []string{
		`INFO  POST /start 200 19ms  start by dev  run 01a21cee-fe18  key=dev  [X7G2EZSJ]`,
		`WARN  run ended after 1m2s  start by dev  run 01a21cee-fe18  state=failed exit_code=1`,
		"WARN  GET /\uFFFD[2J 404 0s  [X7G2EZSJ]  not\uFFFDfound: it\uFFFD",
		`ERROR keys not fetched  issuer="https://a b/"`,
	}
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if len(lines) != len(want) {
		t.Fatalf("got %s", text)
	}
	for i, line := range lines {
		clock, rest, _ := strings.Cut(line, " ")
		if rest != want[i] || !regexp.MustCompile(`^\d\d:\d\d:\d\d$`).MatchString(clock) || len(line) > 100 {
			t.Errorf("got  %s %s\nwant %s", clock, rest, want[i])
		}
	}
}
