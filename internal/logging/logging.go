// Package logging writes the log of a process without waiting for the reader of the log. Lines go through a bounded
// queue ([New]). A line that does not fit is dropped and counted. When the reader continues, a line reports how many
// were dropped. [Output.Close] waits a bounded time for the reader. [Repeated] lets a fault that lasts be logged once.
//
// A line is JSON, text, or, on a terminal, short. [Output.Use] changes that, and the lowest level, while the process
// runs. For the journal of systemd, each line begins with its priority.
//
//	log, out := logging.New(os.Stderr, os.LookupEnv)
//	defer out.Close()
package logging

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxQueued = 1 << 20 // bytes
	// flushTime is how long the end of a process waits for the reader of its log.
	flushTime = 2 * time.Second
)

// Output is a queue of lines in front of a writer. Its methods may be called concurrently. Only Flush and Close wait
// for the writer.
type Output struct {
	to      io.Writer
	journal bool // to is the journal of systemd
	form    atomic.Pointer[form]

	mu      sync.Mutex
	changed sync.Cond
	lines   [][]byte
	size    int // bytes of lines, including the line that is being written
	full    bool
	dropped int // since the queue was full
	total   int // dropped since the start
	closed  bool
}

// New returns a logger with the default [Settings], and the queue that it writes through. lookup returns a variable of
// the environment. The caller closes the queue at the end of the process.
func New(w io.Writer, lookup func(string) (string, bool)) (*slog.Logger, *Output) {
	o := &Output{to: w, journal: isJournal(w, lookup)}
	o.changed.L = &o.mu
	o.Use(Settings{})
	go o.writeLines()
	return slog.New(&handler{out: o}), o
}

// Write implements io.Writer. It queues a line or drops it, and never fails.
func (o *Output) Write(line []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	// Once a line was dropped, all lines are dropped until half of the queue is free. Otherwise a slow reader would get
	// as many lines about dropped lines as other lines.
	o.full = o.full && o.size > maxQueued/2 || o.size+len(line) > maxQueued
	if o.full {
		o.dropped++
		o.total++
		return len(line), nil
	}
	o.noteDropped()
	o.addLine(line)
	return len(line), nil
}

// Dropped returns how many lines were dropped since the start.
func (o *Output) Dropped() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.total
}

// addLine queues a line. The caller holds mu.
func (o *Output) addLine(line []byte) {
	o.lines = append(o.lines, bytes.Clone(line))
	o.size += len(line)
	o.changed.Broadcast()
}

// noteDropped queues a line with the number of dropped lines, if there are any. The caller holds mu.
func (o *Output) noteDropped() {
	if o.dropped == 0 {
		return
	}
	r := slog.NewRecord(time.Now(), slog.LevelWarn, "log lines dropped: the reader of the log did not keep up", 0)
	r.Add("count", o.dropped)
	var line bytes.Buffer
	_ = o.form.Load().newHandler(slog.LevelWarn, &line).Handle(context.Background(), r) // a buffer never fails
	o.dropped, o.full = 0, false
	o.addLine(line.Bytes())
}

// writeLines writes the queued lines one by one: up to a certain length, the kernel does not mix a line with lines that
// other processes write to the same pipe.
func (o *Output) writeLines() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		if len(o.lines) == 0 {
			o.noteDropped()
		}
		switch {
		case len(o.lines) > 0:
			line := o.lines[0]
			o.lines = o.lines[1:]
			o.mu.Unlock()
			_, _ = o.to.Write(line) // an error cannot be reported, because the log is the place for it
			o.mu.Lock()
			o.size -= len(line)
			o.changed.Broadcast()
		case o.closed:
			return
		default:
			o.changed.Wait()
		}
	}
}

// Flush returns when all queued lines are written, or after two seconds: a reader that does not read must not keep a
// process from ending.
func (o *Output) Flush() {
	written := make(chan struct{})
	go func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		for o.size > 0 || o.dropped > 0 {
			o.changed.Wait()
		}
		close(written)
	}()
	select {
	case <-written:
	case <-time.After(flushTime):
	}
}

// Close flushes the queue and ends its goroutine, at once or when the writer returns.
func (o *Output) Close() {
	o.Flush()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.changed.Broadcast()
}

// PrintLast writes a last line to w before a process ends. Like Flush, it waits for two seconds at most.
func PrintLast(w io.Writer, a ...any) {
	written := make(chan struct{})
	go func() {
		_, _ = fmt.Fprintln(w, a...) // an error cannot be reported elsewhere
		close(written)
	}()
	select {
	case <-written:
	case <-time.After(flushTime):
	}
}
