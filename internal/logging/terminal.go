package logging

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"time"
	"unicode"

	"sallyport/internal/terminal"
)

// The number of characters of ids in a short line. So many of a run distinguish the milliseconds in which runs were
// accepted.
const (
	shortRun     = 13
	shortRequest = 8
)

// terminalHandler writes short lines for a person. A line about a request or a run fits on a terminal of 100 columns,
// unless it has an error:
//
//	12:15:54 INFO  POST /start 200 19ms  start by dev  run 01a21cee-fe18  [X7G2EZSJ]
//	12:15:54 INFO  run started  start by dev  run 01a21cee-fe18
//
// No text within a line can begin another line, or send an escape sequence to the terminal.
type terminalHandler struct {
	out   io.Writer
	level slog.Level
	attrs []slog.Attr
	group string // prefix of the keys
}

// Enabled implements slog.Handler.
func (h *terminalHandler) Enabled(_ context.Context, level slog.Level) bool { return level >= h.level }

// WithAttrs implements slog.Handler.
func (h *terminalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *h
	next.attrs = h.attrs[:len(h.attrs):len(h.attrs)]
	for _, a := range attrs {
		next.attrs = append(next.attrs, slog.Attr{Key: h.group + a.Key, Value: a.Value})
	}
	return &next
}

// WithGroup implements slog.Handler.
func (h *terminalHandler) WithGroup(name string) slog.Handler {
	next := *h
	next.group += name + "."
	return &next
}

// Handle implements slog.Handler.
func (h *terminalHandler) Handle(_ context.Context, r slog.Record) error { //nolint:gocritic // as the interface has it
	l := &shortLine{values: map[string]string{}}
	for _, a := range h.attrs {
		l.addAttr(a)
	}
	r.Attrs(func(a slog.Attr) bool {
		l.addAttr(slog.Attr{Key: h.group + a.Key, Value: a.Value})
		return true
	})
	var b bytes.Buffer
	_, _ = fmt.Fprintf(&b, "%s %-5s %s\n", r.Time.Format(time.TimeOnly), r.Level, l.text(terminal.Line(r.Message)))
	_, err := h.out.Write(b.Bytes())
	return err
}

// shortLine has the attributes of a line.
type shortLine struct {
	keys   []string // in their order, without those that were taken
	values map[string]string
}

func (l *shortLine) addAttr(a slog.Attr) {
	value := a.Value.Resolve()
	text := value.String()
	if value.Kind() == slog.KindTime {
		text = value.Time().Local().Format(time.DateTime)
	}
	l.keys = append(l.keys, a.Key)
	l.values[a.Key] = text
}

// take removes an attribute and returns its value, empty if there is none.
func (l *shortLine) take(key string) string {
	value := l.values[key]
	delete(l.values, key)
	return terminal.Line(value)
}

// text returns the line: the message, what it is about, other attributes, and at the end why.
func (l *shortLine) text(message string) string {
	parts := []string{message}
	if message == "request" {
		parts[0] = strings.Join([]string{
			l.take("method"), l.take("path"), l.take("status"), roundDuration(l.take("took_ms")),
		}, " ")
		l.take("address")
	} else if took := l.take("took_ms"); took != "" {
		parts[0] += " after " + roundDuration(took)
	}
	hook, caller, run, request := l.take("hook"), l.take("caller"), l.take("run"), l.take("request")
	if caller != "" {
		hook = strings.TrimSpace(hook + " by " + caller)
	}
	if run != "" {
		run = "run " + cut(run, shortRun)
	}
	if request != "" {
		request = "[" + cut(request, shortRequest) + "]"
	}
	why := strings.Trim(l.take("reason")+": "+l.take("error"), ": ")
	parts = append(parts, hook, run, l.rest(), request, why)
	return joinParts(parts)
}

func (l *shortLine) rest() string {
	var all []string
	for _, key := range l.keys {
		value, there := l.values[key]
		if !there {
			continue
		}
		if value == "" || strings.ContainsFunc(value, needsQuotes) {
			value = strconv.Quote(value)
		}
		all = append(all, terminal.Line(key)+"="+value)
	}
	return strings.Join(all, " ")
}

// joinParts joins the parts that are not empty.
func joinParts(parts []string) string {
	var there []string
	for _, p := range parts {
		if p != "" {
			there = append(there, p)
		}
	}
	return strings.Join(there, "  ")
}

func cut(text string, length int) string { return text[:min(len(text), length)] }

// roundDuration returns a number of milliseconds as a duration with few digits.
func roundDuration(milliseconds string) string {
	ms, err := strconv.ParseFloat(milliseconds, 64)
	if err != nil {
		return milliseconds
	}
	d := time.Duration(ms * float64(time.Millisecond))
	switch {
	case d >= time.Minute:
		return d.Round(time.Second).String()
	case d >= time.Second:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Millisecond).String()
}

func needsQuotes(r rune) bool { return r == '"' || r == ' ' || !unicode.IsPrint(r) }
