package handlers_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"sallyport/handlers"
	"sallyport/runner"
	"sallyport/runner/process/output"
	"sallyport/runner/process/rundir"
)

// untilGone is a script that waits until the file named hold is removed.
const untilGone = "\nwhile [ -e hold ]; do sleep 0.02; done\n"

// stream is an answer that is still being written.
type stream struct {
	*http.Response
	t     *testing.T
	lines *bufio.Reader
}

// read requests the output of a run as it is then.
func (h *house) read(run runner.Run) delivery {
	h.t.Helper()
	return h.get("/runs/" + run.ID + "/output")
}

// follow requests the output of a run while it is written, over HTTP/1.1 or HTTP/2.
func (h *house) follow(protocol int, run runner.Run, header ...string) *stream {
	h.t.Helper()
	transport := &http.Transport{TLSClientConfig: h.clientTLS(), ForceAttemptHTTP2: protocol == 2}
	h.t.Cleanup(transport.CloseIdleConnections)
	req, err := http.NewRequestWithContext(h.t.Context(), http.MethodGet, h.server.URL+"/runs/"+run.ID+"/output?follow", nil)
	if err != nil {
		h.t.Fatal(err)
	}
	req.Header = h.by("good", "").header
	for _, field := range header {
		name, value, _ := strings.Cut(field, ": ")
		req.Header.Set(name, value)
	}
	res, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = res.Body.Close() })
	if res.ProtoMajor != protocol {
		h.t.Fatalf("this is HTTP/%d", res.ProtoMajor)
	}
	return &stream{res, h.t, bufio.NewReader(res.Body)}
}

// readRest returns what arrives until the answer ends, and whether the answer is complete.
func (s *stream) readRest() (string, bool) {
	text, err := io.ReadAll(s.lines)
	return string(text), err == nil
}

// wantWhole returns the rest of a complete answer.
func (s *stream) wantWhole(status int) string {
	s.t.Helper()
	text, ok := s.readRest()
	if s.StatusCode != status || !ok {
		s.t.Errorf("status %d, ended well: %v: %.200q", s.StatusCode, ok, text)
	}
	return text
}

// event is a server-sent event, or a comment if it has no name.
type event struct {
	name, data string
	id         int
}

// readEvent returns the next event, or a zero event when the stream has ended without an error.
func (s *stream) readEvent() (e event) {
	s.t.Helper()
	for e.id = -1; ; {
		line, err := s.lines.ReadString('\n')
		if errors.Is(err, io.EOF) && line == "" {
			return event{}
		}
		if err != nil {
			s.t.Error(err)
			return event{}
		}
		if line == "\n" {
			return e
		}
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch name {
		case "id":
			e.id, _ = strconv.Atoi(value)
		case "event":
			e.name = value
		case "data":
			e.data = value
		}
	}
}

// output reads events until they contain so much text, and returns the last id.
func (s *stream) output(want string) (id int) {
	s.t.Helper()
	for got := ""; got != want; {
		e := s.readEvent()
		if e.name != "output" {
			s.t.Fatalf("after %q comes %+v", got, e)
		}
		got, id = got+e.text(s.t), e.id
		if !strings.HasPrefix(want, got) {
			s.t.Fatalf("got %q, want %q", got, want)
		}
	}
	return id
}

func (e event) text(t *testing.T) (text string) {
	t.Helper()
	if err := json.Unmarshal([]byte(e.data), &text); err != nil {
		t.Fatal(err)
	}
	return text
}

// wantEnd checks that the stream ends here, with the end of the run.
func (s *stream) wantEnd(state runner.State) {
	s.t.Helper()
	var run runner.Run
	e := s.readEvent()
	if err := json.Unmarshal([]byte(e.data), &run); e.name != "end" || err != nil || run.State != state {
		s.t.Errorf("got %+v, %v, want the end as %s", e, err, state)
	}
	if e := s.readEvent(); e != (event{}) {
		s.t.Errorf("after the end comes %+v", e)
	}
}

const (
	events     = "Accept: text/event-stream"
	fromOffset = "Range: bytes=%d-"
)

// protocols returns the versions of HTTP that a server supports.
func protocols() map[string]int { return map[string]int{"HTTP 1.1": 1, "HTTP 2": 2} }

// hurried makes the deadlines of an answer twenty times shorter.
type hurried struct {
	http.ResponseWriter
	h *house
}

func (w hurried) SetWriteDeadline(at time.Time) error {
	return http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now().Add(at.Sub(w.h.clock.now()) / 20))
}

func (w hurried) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// TestFollow_SilentCommand: a command may write nothing for longer than an answer may take.
func TestFollow_SilentCommand(t *testing.T) {
	t.Parallel()
	for name, protocol := range protocols() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newScribe(t, "echo first; sleep 4; echo last")
			all := h.server.Config.Handler
			h.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { all.ServeHTTP(hurried{w, h}, r) }))
			run := h.begin("1")
			plain, sse, waits := h.follow(protocol, run), h.follow(protocol, run, events), h.follow(protocol, h.begin("2"), events)
			if text := plain.wantWhole(http.StatusOK); text != "first\nlast\n" {
				t.Errorf("got %q", text)
			}
			for _, s := range []*stream{sse, waits} {
				s.output("first\nlast\n")
				s.wantEnd(runner.Succeeded)
			}
		})
	}
}

// TestFollow_KeepAlive: an idle stream gets comments, which show that the connection works.
func TestFollow_KeepAlive(t *testing.T) {
	t.Parallel()
	h := newScribe(t, "echo first"+untilGone)
	h.holdCommands()
	run := h.begin("1")
	waits := h.follow(2, h.begin("2"), events)
	s := h.follow(2, run, events)
	s.output("first\n")
	asked := h.record.gets.Load()
	for range 5 {
		h.clock.advance(15 * time.Second)
		for _, s := range []*stream{s, waits} {
			if e := s.readEvent(); e.name != "" || e.id != -1 {
				t.Errorf("got %+v, want a comment", e)
			}
		}
	}
	if now := h.record.gets.Load(); now != asked+2 { // the access of each reader was checked again, after a minute
		t.Errorf("while nothing happened, the record was asked %d times", now-asked)
	}
	h.releaseCommands()
	s.wantEnd(runner.Succeeded)
}

// TestFollow_WholeCharacters: a character is not split where one read ends.
func TestFollow_WholeCharacters(t *testing.T) {
	t.Parallel()
	h := newScribe(t, `printf 'a\303'; while [ -e hold ]; do sleep 0.02; done; printf '\251b\377c\342\202'`)
	h.holdCommands()
	s := h.follow(1, h.begin("1"), events)
	if id := s.output("a"); id != 1 {
		t.Errorf("the id %d is not where the text ends", id)
	}
	h.releaseCommands()
	if id := s.output("\u00e9b\ufffdc"); id != 6 {
		t.Errorf("the id %d is not where the text ends", id)
	}
	if id := s.output("\ufffd"); id != 8 { // its rest was never written
		t.Errorf("the id %d is not where the text ends", id)
	}
	s.wantEnd(runner.Succeeded)
}

// TestFollow_QueuedRun: a queued run is followed from its start.
func TestFollow_QueuedRun(t *testing.T) {
	t.Parallel()
	h := newScribe(t, "echo first"+untilGone+"echo last")
	h.holdCommands()
	h.begin("1")
	waits, given := h.begin("2"), h.begin("3")
	if waits.State != runner.Queued {
		t.Fatalf("it is %s", waits.State)
	}
	plain, sse, never, nothing := h.follow(1, waits), h.follow(2, waits, events), h.follow(2, given, events), h.follow(1, given)
	if _, err := h.runner.Cancel(t.Context(), given.ID); err != nil {
		t.Fatal(err)
	}
	never.wantEnd(runner.Cancelled)
	h.follow(2, given, events).wantEnd(runner.Cancelled) // a late reader gets the same
	if text := nothing.wantWhole(http.StatusOK); text != "" {
		t.Errorf("a run that never started has the output %q", text)
	}
	if a := h.answers(http.StatusNotFound, h.read(given)); !strings.Contains(a.body, "was not started") {
		t.Errorf("got %s", a.body)
	}
	h.releaseCommands()
	if text := plain.wantWhole(http.StatusOK); text != "first\nlast\n" {
		t.Errorf("got %q", text)
	}
	sse.output("first\nlast\n")
	sse.wantEnd(runner.Succeeded)
}

// TestFollow_HandOver: followers are sent to the next server at once.
func TestFollow_HandOver(t *testing.T) {
	t.Parallel()
	for name, protocol := range protocols() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newScribe(t, "echo first"+untilGone)
			h.holdCommands()
			run := h.begin("1")
			sse, plain, waits := h.follow(protocol, run, events), h.follow(protocol, run), h.follow(protocol, h.begin("2"), events)
			sse.output("first\n")
			h.runner.Leave()
			for _, s := range []*stream{sse, waits} {
				if e := s.readEvent(); e != (event{}) {
					t.Errorf("got %+v, want the end of the stream and not of the run", e)
				}
			}
			if text, whole := plain.readRest(); whole {
				t.Errorf("what was sent looks like the whole output: %q", text)
			}
		})
	}
}

// TestFollow_RunningDuringDrain: followers of a running run stay while the server drains.
func TestFollow_RunningDuringDrain(t *testing.T) {
	t.Parallel()
	h := newScribe(t, "echo first"+untilGone+"echo last")
	h.holdCommands()
	runs, waits := h.follow(2, h.begin("1"), events), h.follow(2, h.begin("2"), events)
	runs.output("first\n")
	drained := make(chan struct{})
	go func() { defer close(drained); h.runner.Drain(t.Context()) }()
	if e := waits.readEvent(); e != (event{}) { // the run starts at the next server
		t.Errorf("got %+v", e)
	}
	h.releaseCommands()
	runs.output("last\n")
	runs.wantEnd(runner.Succeeded)
	<-drained
}

// TestOutput_FailureLooksBroken: an output that cannot be read to its end is not sent like a complete one.
func TestOutput_FailureLooksBroken(t *testing.T) {
	t.Parallel()
	for name, protocol := range protocols() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newScribe(t, "echo much")
			run := h.begin("1")
			h.stands(run, runner.Succeeded)
			log := slog.New(slog.NewJSONHandler(h.log, nil))
			h.serve(handlers.New(h.config, h.runner, func(id string) (*output.Reader, error) {
				out, err := h.outputs(id)
				return out, errors.Join(err, out.Close()) // so that reading fails
			}, h.audit, h.check, nil, h.clock.now, log))
			if a, err := h.send(h.read(run)); err == nil {
				t.Errorf("this looks whole: %+v", a)
			}
			for _, s := range []*stream{h.follow(protocol, run), h.follow(protocol, run, events)} {
				if text, whole := s.readRest(); whole || s.StatusCode != http.StatusOK {
					t.Errorf("status %d, and this looks whole: %q", s.StatusCode, text)
				}
				if line := h.line(answer{header: s.Header}); !strings.Contains(fmt.Sprint(line["error"]), output.ErrNotKept.Error()) {
					t.Errorf("the operator does not read why: %v", line)
				}
			}
		})
	}
}

// TestOutput_NotKept: an output that is not kept is not found.
func TestOutput_NotKept(t *testing.T) {
	t.Parallel()
	h := newScribe(t, "echo much")
	run := h.begin("1")
	h.stands(run, runner.Succeeded)
	if freed, err := rundir.Trim(h.config.Get().State+"/runs", 0); err != nil || freed == 0 {
		t.Fatal(freed, err)
	}
	for _, query := range []string{"", "?follow"} {
		a := h.answers(http.StatusNotFound, h.get("/runs/"+run.ID+"/output"+query))
		if !strings.Contains(a.body, "urn:sallyport:not-found") || !strings.Contains(a.body, "not kept any more") {
			t.Errorf("got %s", a.body)
		}
	}
}

// TestOutput_OpenedByKeeper: outputs are opened through the supervisor, because the file of an output that goes
// through a pipe is behind what the supervisor knows.
func TestOutput_OpenedByKeeper(t *testing.T) {
	t.Parallel()
	h := newScribe(t, "echo much")
	run := h.begin("1")
	h.stands(run, runner.Succeeded)
	opened := 0
	h.serve(handlers.New(h.config, h.runner, func(id string) (*output.Reader, error) {
		opened++
		return h.outputs(id)
	}, h.audit, h.check, nil, h.clock.now, slog.New(slog.DiscardHandler)))
	if text := h.follow(1, run).wantWhole(http.StatusOK); text != "much\n" || opened != 1 {
		t.Errorf("got %q, and %d were opened", text, opened)
	}
	if a := h.answers(http.StatusOK, h.read(run)); a.body != "much\n" || opened != 2 {
		t.Errorf("got %q, and %d were opened", a.body, opened)
	}
}

// lines is an output of which the middle is not kept: 3 MB, and each line is its number.
const (
	lines     = "seq 1000000 1428570"
	lineBytes = 8
	all       = 428571 * lineBytes
)

// checkLines checks that the text at an offset is what the command wrote there.
func checkLines(t *testing.T, text string, at int) {
	t.Helper()
	for text != "" {
		line := fmt.Sprintln(1000000 + at/lineBytes)[at%lineBytes:]
		n := min(len(line), len(text))
		if text[:n] != line[:n] {
			t.Fatalf("at %d stands %q, want %q", at, text[:n], line[:n])
		}
		text, at = text[n:], at+n
	}
}

// TestEvents_OffsetsAndGaps: events contain their offsets, and report what is missing.
func TestEvents_OffsetsAndGaps(t *testing.T) {
	t.Parallel()
	h := newScribe(t, lines)
	run := h.begin("1")
	h.stands(run, runner.Succeeded)
	s, at, gaps := h.follow(2, run, events), 0, 0
	var gap struct{ From, To int }
	for at < all {
		e := s.readEvent()
		switch e.name {
		case "output":
			checkLines(t, e.text(t), at)
			at += len(e.text(t))
		case "gap":
			if err := json.Unmarshal([]byte(e.data), &gap); err != nil || gap.From != at || gap.To <= at {
				t.Fatalf("at %d: %+v", at, e)
			}
			at, gaps = gap.To, gaps+1
		}
		if e.id != at {
			t.Fatalf("at %d: %+v", at, e)
		}
	}
	s.wantEnd(runner.Succeeded)
	if gaps != 1 || gap.From < 4<<10 {
		t.Fatalf("%d gaps, the last one %+v", gaps, gap)
	}
	s = h.follow(2, run, events, "Last-Event-ID: "+strconv.Itoa(all-24))
	if id := s.output("1428568\n1428569\n1428570\n"); id != all {
		t.Errorf("ends at %d", id)
	}
	s.wantEnd(runner.Succeeded)
	s = h.follow(2, run, events, "Last-Event-ID: "+strconv.Itoa(gap.From+1))
	if e := s.readEvent(); e.name != "gap" || e.id != gap.To {
		t.Errorf("in the middle: %+v", e)
	}
}

// TestFollow_FromOffset: an output is followed from an offset.
func TestFollow_FromOffset(t *testing.T) {
	t.Parallel()
	for name, protocol := range protocols() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newScribe(t, "echo first"+untilGone+lines)
			h.holdCommands()
			run := h.begin("1")
			s, ahead := h.follow(protocol, run, fmt.Sprintf(fromOffset, 2)), h.follow(protocol, run, fmt.Sprintf(fromOffset, all+6))
			if got := s.Header.Get("Content-Range"); s.StatusCode != http.StatusPartialContent || got != "bytes 2-9007199254740990/*" {
				t.Errorf("status %d, range %q", s.StatusCode, got)
			}
			first := make([]byte, 4)
			if _, err := io.ReadFull(s.lines, first); err != nil || string(first) != "rst\n" {
				t.Errorf("got %q, %v", first, err)
			}
			h.releaseCommands()
			h.stands(run, runner.Succeeded)
			if text := ahead.wantWhole(http.StatusPartialContent); text != "" {
				t.Errorf("there is %q behind the end", text)
			}
			// The output may have been read before it was dropped. Dropped output is never skipped without a notice.
			if text, whole := s.readRest(); whole && len(text) != all {
				t.Errorf("%d bytes look whole", len(text))
			}
			s = h.follow(protocol, run, fmt.Sprintf(fromOffset, all/2))
			var from int
			_, err := fmt.Sscanf(s.Header.Get("Content-Range"), "bytes %d-", &from)
			if text := s.wantWhole(http.StatusPartialContent); err != nil || from <= all/2 || from+len(text) != all+6 {
				t.Errorf("from %d on there are %d bytes", from, len(text))
			} else {
				checkLines(t, text, from-6)
			}
			if text, whole := h.follow(protocol, run, fmt.Sprintf(fromOffset, 0)).readRest(); whole || !strings.HasPrefix(text, "first\n1000000\n") {
				t.Errorf("before what is dropped there is %.20q, and it looks whole: %v", text, whole)
			}
		})
	}
}

// TestFollow_StuckReader: a reader that stops reading delays neither the command nor other readers.
func TestFollow_StuckReader(t *testing.T) {
	t.Parallel()
	for name, protocol := range protocols() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newScribe(t, untilGone+"head -c 50000000 /dev/zero; echo last")
			h.holdCommands()
			run := h.begin("1")
			slow := h.follow(protocol, run)
			others := make([]*stream, 8)
			for i := range others {
				others[i] = h.follow(protocol, run, events)
			}
			h.releaseCommands()
			var all sync.WaitGroup
			for _, s := range others {
				all.Go(func() {
					last := event{}
					for e := s.readEvent(); e != (event{}); e = s.readEvent() {
						last = e
					}
					if last.name != "end" || !strings.Contains(last.data, `"bytes":50000005`) {
						t.Errorf("the last that came is %+v", last)
					}
				})
			}
			all.Wait()
			h.stands(run, runner.Succeeded)
			_ = slow.Body.Close()
		})
	}
}

// TestFollow_ManyReaders: each of many readers gets the whole output.
func TestFollow_ManyReaders(t *testing.T) {
	t.Parallel()
	h := newScribe(t, "for i in 1 2 3 4 5; do echo $i; sleep 0.05; done"+untilGone+"echo last")
	h.holdCommands()
	run := h.begin("1")
	var many []*stream
	for i := range 60 {
		many = append(many, h.follow(1+i%2, run))
	}
	h.releaseCommands()
	for _, s := range many {
		if text := s.wantWhole(http.StatusOK); text != "1\n2\n3\n4\n5\nlast\n" {
			t.Errorf("got %q", text)
		}
	}
}
