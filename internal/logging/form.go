package logging

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"syscall"

	"sallyport/internal/terminal"
)

// Format is the form of a line.
type Format string

// The formats. Without one, a line is Terminal on a terminal, and JSON elsewhere.
const (
	JSON     Format = "json"
	Text     Format = "text"     // key=value
	Terminal Format = "terminal" // short, for a person
)

// Settings are the lowest level that is written, and the form of the lines. The zero value is the default.
type Settings struct {
	Level  slog.Level
	Format Format
}

// Use changes the settings for all lines from now on.
func (o *Output) Use(s Settings) {
	if s.Format == "" {
		s.Format = JSON
		if terminal.Is(o.to) {
			s.Format = Terminal
		}
	}
	f := &form{Settings: s, journal: o.journal}
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		f.handlers = append(f.handlers, f.newHandler(level, o))
	}
	o.form.Store(f)
}

// form makes lines of records.
type form struct {
	Settings

	journal  bool
	handlers []slog.Handler // for debug, info, warn and error
}

// newHandler returns a handler that writes lines of a level to out.
func (f *form) newHandler(level slog.Level, out io.Writer) slog.Handler {
	if f.journal {
		out = &prefixed{out: out, prefix: priority(level)}
	}
	options := &slog.HandlerOptions{Level: f.Level}
	switch f.Format {
	case Text:
		return slog.NewTextHandler(out, options)
	case Terminal:
		return &terminalHandler{out: out, level: f.Level}
	case JSON:
	}
	return slog.NewJSONHandler(out, options)
}

// handlerOf returns the handler for records of a level.
func (f *form) handlerOf(level slog.Level) slog.Handler {
	switch {
	case level >= slog.LevelError:
		return f.handlers[3]
	case level >= slog.LevelWarn:
		return f.handlers[2]
	case level >= slog.LevelInfo:
		return f.handlers[1]
	}
	return f.handlers[0]
}

// handler writes in the form that its output has at the time.
type handler struct {
	out  *Output
	with []func(slog.Handler) slog.Handler // WithAttrs and WithGroup, in their order
}

// Enabled implements slog.Handler.
func (h *handler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.out.form.Load().Level
}

// Handle implements slog.Handler.
func (h *handler) Handle(ctx context.Context, r slog.Record) error { //nolint:gocritic // the interface has a value
	to := h.out.form.Load().handlerOf(r.Level)
	for _, add := range h.with {
		to = add(to)
	}
	return to.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return h.derive(func(to slog.Handler) slog.Handler { return to.WithAttrs(attrs) })
}

// WithGroup implements slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	return h.derive(func(to slog.Handler) slog.Handler { return to.WithGroup(name) })
}

func (h *handler) derive(add func(slog.Handler) slog.Handler) *handler {
	return &handler{out: h.out, with: append(h.with[:len(h.with):len(h.with)], add)}
}

// JournalEnv is the variable that systemd sets if stdout or stderr is connected to the journal.
const JournalEnv = "JOURNAL_STREAM"

// isJournal reports whether w is connected to the journal of systemd: then JournalEnv has its device and inode
// (systemd.exec(5)). A process whose stderr was redirected inherits the variable, too.
func isJournal(w io.Writer, lookup func(string) (string, bool)) bool {
	f, ok := w.(*os.File)
	stream, set := lookup(JournalEnv)
	if !ok || !set {
		return false
	}
	info, err := f.Stat()
	if err != nil {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && fmt.Sprintf("%d:%d", stat.Dev, stat.Ino) == stream
}

// priority returns the prefix with which the journal recognizes the priority of a line (sd-daemon(3)).
func priority(level slog.Level) string {
	switch {
	case level >= slog.LevelError:
		return "<3>"
	case level >= slog.LevelWarn:
		return "<4>"
	case level >= slog.LevelInfo:
		return "<6>"
	}
	return "<7>"
}

// Plain returns a writer for lines that are not made by the logger, with the priority of a level for the journal.
func (o *Output) Plain(level slog.Level) io.Writer {
	if o.journal {
		return &prefixed{out: o, prefix: priority(level)}
	}
	return o
}

// PlainErrors returns a writer for the errors of a process that has no logger: w, with a priority for the journal.
func PlainErrors(w io.Writer, lookup func(string) (string, bool)) io.Writer {
	if isJournal(w, lookup) {
		return &prefixed{out: w, prefix: priority(slog.LevelError)}
	}
	return terminal.Writer(w)
}

// prefixed writes each line with a prefix, in one call.
type prefixed struct {
	out    io.Writer
	prefix string

	mu   sync.Mutex
	line []byte
}

// Write implements io.Writer.
func (p *prefixed) Write(line []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.line = append(append(p.line[:0], p.prefix...), line...)
	if _, err := p.out.Write(p.line); err != nil {
		return 0, err
	}
	return len(line), nil
}
