package handlers_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"sallyport/handlers"
	"sallyport/internal/audit"
	"sallyport/internal/client"
	"sallyport/internal/readiness"
	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/process"
	"sallyport/runner/store"
)

// newReaders serves a hook with a long parameter and the policy join, whose runs good and ci share. ci may read all
// runs of the hook, and guest has no right to it.
func newReaders(t *testing.T) *house {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/write.sh", []byte("#!/bin/sh\ncd \"$1\"\necho first"+untilGone+"echo last\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	h := build(t, dir, fmt.Sprintf(`
listen: "localhost:0"
state: state
tls: {cert: certs/server.pem, key: certs/server.key, client_ca: certs/ca.pem}
limits: {address: {rate: 1000000/s, burst: 1000000}, caller: {rate: 1000000/s, burst: 1000000}}
callers:
  good: {hmac: {scheme: github, keys: [{file: good}]}}
  guest: {hmac: {scheme: slack, keys: [{file: guest}]}}
  ci: {jwt: {issuer: https://ci.example, audience: https://hooks.example.com, keys: [{file: token}]}}
  browser: {mtls: {uri: spiffe://localhost/dev}}
hooks:
  start:
    path: /start
    callers: [good, {caller: ci, may: [start, read, cancel]}, browser]
    command: [%q, %q, "--x={x}"]
    params: {x: {from: query.x, match: '(?s).*', default: ""}}
    busy: join
  joint:
    path: /joint
    callers: [good, ci]
    command: [%q, %q, "--x={x}"]
    params: {x: {from: query.x, match: '(?s).*', default: ""}}
    busy: join
  other: {callers: [guest], command: [/bin/true]}
`, dir+"/write.sh", dir, dir+"/write.sh", dir))
	h.clock.start()
	return h
}

// restart lets another server take over the state folder.
func (h *house) restart() {
	h.t.Helper()
	h.runner.Drain(h.t.Context())
	if err := h.record.ConfirmingStore.(*store.SQLite).Close(); err != nil {
		h.t.Fatal(err)
	}
	log := slog.New(slog.NewJSONHandler(h.log, nil))
	st, err := store.Open(h.t.Context(), h.config.Get().State, h.clock.now, log)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		h.runner.Drain(context.WithoutCancel(h.t.Context()))
		if err := st.Close(); err != nil {
			h.t.Error(err)
		}
	})
	procs, err := process.NewLocal(h.config.Get().State+"/runs", h.config.Hook, log)
	if err != nil {
		h.t.Fatal(err)
	}
	h.record = &record{ConfirmingStore: st}
	h.runner = runner.New(audit.Store(h.record, h.audit), procs, h.config.Hook, h.clock.now, log)
	if err := h.runner.Recover(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	check := readiness.New(slog.New(slog.DiscardHandler), readiness.Part{Name: "store", Probe: st.Probe})
	h.serve(handlers.New(h.config, h.runner, procs.Output, h.audit, check, nil, h.clock.now, log))
}

// TestRuns_WholeAPIAtOnceAfterStart sends 24 requests at once to a server that has not answered any yet. Each must be
// answered.
func TestRuns_WholeAPIAtOnceAfterStart(t *testing.T) {
	t.Parallel()
	h := newReaders(t)
	run := h.begin("1")
	h.stands(run, runner.Succeeded)
	for try := range 10 {
		h.restart()
		d := func(method, path string, i int) delivery { return h.asks(method, path, fmt.Sprint(try, " ", path, i)) }
		var all sync.WaitGroup
		for i := range 2 {
			for _, d := range []delivery{
				d("GET", "/runs", i), d("GET", "/runs?hook=start&state=succeeded&state=failed", i), d("GET", "/runs?caller=good&limit=1000", i),
				d("HEAD", "/runs", i), d("GET", "/runs/"+run.ID, i), d("GET", "/runs/"+run.ID+"/output", i), d("GET", "/runs/"+run.ID+"/output?follow", i),
				d("DELETE", "/runs/"+run.ID, i), d("POST", "/runs/"+run.ID+"/rerun", i), d("GET", "/readyz", i),
				h.by("good", fmt.Sprint("delivery ", try, i)), h.get("/runs?hook=start"),
			} {
				all.Go(func() {
					// A request waits for a place among the reads of a caller for seconds at most.
					if a, err := h.send(d); err != nil || a.status >= 500 && a.status != http.StatusServiceUnavailable {
						t.Errorf("try %d: %s %s: %d %s, %v", try, d.method, d.path, a.status, a.body, err)
					}
				})
			}
		}
		all.Wait()
		if t.Failed() {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%s", stacks[:runtime.Stack(stacks, true)])
		}
		h.answers(http.StatusOK, h.get("/runs?limit=1"))
	}
}

// TestRuns_NamesAreBounded: the filter of a list may have few names, and only those that the caller may know.
func TestRuns_NamesAreBounded(t *testing.T) {
	t.Parallel()
	h := newReaders(t)
	run := h.begin("1")
	h.stands(run, runner.Succeeded)
	many := func(name, value string, n int) string {
		return "/runs?" + url.Values{name: slices.Repeat([]string{value}, n)}.Encode()
	}
	for path, want := range map[string]int{
		"/runs?hook=start&caller=good&state=succeeded": http.StatusOK,
		"/runs?caller=ci":                            http.StatusOK,
		"/runs?caller=browser":                       http.StatusOK, // a caller of a hook whose runs it may read
		"/runs?hook=other":                           http.StatusBadRequest,
		"/runs?hook=none":                            http.StatusBadRequest,
		"/runs?hook=start&hook=none":                 http.StatusBadRequest,
		"/runs?caller=guest":                         http.StatusBadRequest,
		"/runs?caller=none":                          http.StatusBadRequest,
		"/runs?state=none":                           http.StatusBadRequest,
		many("hook", "start", handlers.MaxNames):     http.StatusOK,
		many("hook", "start", handlers.MaxNames+1):   http.StatusBadRequest,
		many("caller", "ci", handlers.MaxNames+1):    http.StatusBadRequest,
		many("state", "failed", handlers.MaxNames+1): http.StatusBadRequest,
	} {
		a := h.answers(want, h.asks(http.MethodGet, path, path))
		if strings.Contains(a.body, run.ID) != (path == "/runs?hook=start&caller=good&state=succeeded" || path == many("hook", "start", handlers.MaxNames)) {
			t.Errorf("%.80s: %.200s", path, a.body)
		}
	}
	// A caller that may not read the runs of any hook knows no other caller.
	h.answers(http.StatusBadRequest, h.get("/runs?caller=ci"))
}

// TestRuns_PagesOfLongParameters: a page shows the beginning of long parameters and ends before it is large. Single
// runs are complete, and no run is missing.
func TestRuns_PagesOfLongParameters(t *testing.T) {
	t.Parallel()
	h := newReaders(t)
	long := strings.Repeat("y", 64<<10)
	var want []string
	for range 40 { // 16 of them make 1 MiB
		v7, err := uuid.NewV7()
		if err != nil {
			t.Fatal(err)
		}
		id := v7.String()
		r := runner.Run{ID: id, Hook: "start", Caller: "good", Flight: id, Params: map[string]string{"x": long}, Created: h.clock.now()}
		if _, err := h.record.Admit(t.Context(), r, runner.Claim{}, hook.Policy{}, runner.Feed{}); err != nil {
			t.Fatal(err)
		}
		if _, _, err := h.record.Finish(t.Context(), id, runner.Succeeded, runner.End{Ended: h.clock.now()},
			runner.KeepClaims, runner.LeaveQueued); err != nil {
			t.Fatal(err)
		}
		want = append([]string{id}, want...)
	}
	for caller, get := range map[string]func(string) delivery{
		"good": h.get,
		"ci":   func(path string) delivery { return h.asks(http.MethodGet, path, path) },
	} {
		var got []string
		for next := "/runs?limit=1000"; next != ""; {
			a := h.answers(http.StatusOK, get(next))
			var page client.Page
			if err := json.Unmarshal([]byte(a.body), &page); err != nil || len(a.body) > 64<<10 {
				t.Fatalf("%d bytes, %v", len(a.body), err)
			}
			for _, run := range page.Runs {
				got = append(got, run.ID)
				if !slices.Equal(run.Cut, []string{"x"}) || run.Params["x"] != long[:256]+"…" {
					t.Errorf("%s: %q, cut %v", caller, run.Params["x"], run.Cut)
				}
			}
			next = page.Next
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %d runs, want %d", caller, len(got), len(want))
		}
	}
	if a := h.answers(http.StatusOK, h.get("/runs/"+want[0])); !strings.Contains(a.body, long) {
		t.Error("a single run is cut")
	}
}

// TestRuns_BoundedPerCaller fills what one caller may have in progress: the next request of that caller is refused or
// answered at once, and others are not affected.
func TestRuns_BoundedPerCaller(t *testing.T) {
	t.Parallel()
	h := newReaders(t)
	h.holdCommands()
	run := h.begin("1")
	h.stands(run, runner.Running)
	follow := "/runs/" + run.ID + "/output?follow"
	var streams []*stream
	for range handlers.MaxFollowers {
		s := h.follow(2, run, events)
		s.output("first\n")
		streams = append(streams, s)
	}
	if a := h.answers(http.StatusTooManyRequests, h.get(follow)); a.header.Get("Retry-After") == "" || !strings.Contains(a.body, "followers") {
		t.Errorf("one more follower: %v %s", a.header, a.body)
	}
	h.answers(http.StatusOK, h.get("/runs/"+run.ID)) // an answer that follows a run is not a read in progress
	h.answers(http.StatusOK, h.asks(http.MethodHead, follow, "another caller"))

	var waits sync.WaitGroup
	for i := range handlers.MaxWaits {
		d := h.asks(http.MethodGet, "/runs/"+run.ID, fmt.Sprint("wait ", i))
		d.header.Set("Prefer", "wait=60")
		waits.Go(func() {
			for waited := false; !waited && !t.Failed(); { // one of the requests below had its place
				waited = h.answers(http.StatusOK, d).header.Get("Preference-Applied") != ""
			}
		})
	}
	for i := 0; ; i++ { // repeated until all requests above wait
		d := h.asks(http.MethodGet, "/runs/"+run.ID, fmt.Sprint("one more ", i))
		d.header.Set("Prefer", "wait=1")
		if a := h.answers(http.StatusOK, d); a.header.Get("Preference-Applied") == "" {
			break
		}
	}
	d := h.get("/runs/" + run.ID)
	d.header.Set("Prefer", "wait=1")
	if a := h.answers(http.StatusOK, d); a.header.Get("Preference-Applied") != "wait=1" {
		t.Error("another caller does not wait")
	}
	h.releaseCommands()
	waits.Wait()
	for _, s := range streams {
		s.output("last\n")
		s.wantEnd(runner.Succeeded)
	}
	h.answers(http.StatusOK, h.get(follow))
}

// TestRuns_ReadsWaitForTheirTurn has the store not answer: the reads that a caller may have in progress wait for it,
// the next one is refused, and deliveries of another caller are not affected.
func TestRuns_ReadsWaitForTheirTurn(t *testing.T) {
	t.Parallel()
	h := newReaders(t)
	run := h.begin("1")
	h.stands(run, runner.Succeeded)
	came, goOn := h.record.stopLists()
	defer goOn()
	answers := make(chan answer, handlers.MaxReads)
	for i := range handlers.MaxReads {
		go func() {
			a, _ := h.send(h.asks(http.MethodGet, "/runs", fmt.Sprint("read ", i)))
			answers <- a
		}()
	}
	for range handlers.MaxReads {
		<-came
	}
	if a := h.answers(http.StatusTooManyRequests, h.asks(http.MethodGet, "/runs/"+run.ID, "one more")); a.header.Get("Retry-After") == "" {
		t.Errorf("%v", a.header)
	}
	h.answers(http.StatusOK, h.by("good", "2"))
	h.answers(http.StatusOK, h.get("/runs/"+run.ID))
	goOn()
	for range handlers.MaxReads {
		if a := <-answers; a.status != http.StatusOK {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	h.answers(http.StatusOK, h.asks(http.MethodGet, "/runs/"+run.ID, "afterwards"))
}

// TestFollow_JoinedRunEndsInQueue: a caller whose delivery another caller joined does not see which caller has the
// run now, however the run ends.
func TestFollow_JoinedRunEndsInQueue(t *testing.T) {
	t.Parallel()
	h := newReaders(t)
	h.holdCommands()
	h.answers(http.StatusOK, h.by("good", "1").to("/joint"))
	var waits runner.Run
	a := h.answers(http.StatusAccepted, h.by("good", "2").to("/joint?x=mine"))
	if err := json.Unmarshal([]byte(a.body), &waits); err != nil {
		t.Fatal(err)
	}
	sse, plain := h.follow(2, waits, events), h.follow(1, waits)
	h.answers(http.StatusAccepted, h.asks(http.MethodPost, "/joint?x=secret-of-ci", "join"))
	if _, err := h.runner.Cancel(t.Context(), waits.ID); err != nil {
		t.Fatal(err)
	}
	if text, _ := sse.readRest(); strings.Contains(text, "end") || strings.Contains(text, "secret") {
		t.Errorf("the earlier caller reads %s", text)
	}
	if text, whole := plain.readRest(); whole {
		t.Errorf("what was sent looks like the whole output: %q", text)
	}
	h.answers(http.StatusForbidden, h.get("/runs/"+waits.ID+"/output?follow"))
	if a := h.answers(http.StatusOK, h.get("/runs/"+waits.ID)); strings.Contains(a.body, "secret") || !strings.Contains(a.body, `"cancelled"`) {
		t.Errorf("the run itself: %s", a.body)
	}
}

// browsing returns a request that a browser makes for a page of some site, with the client certificate of its user.
func (h *house) browsing(method, path string, header ...string) delivery {
	h.t.Helper()
	pair, err := tls.LoadX509KeyPair(h.dir+"/certs/client.pem", h.dir+"/certs/client.key")
	if err != nil {
		h.t.Fatal(err)
	}
	d := delivery{method: method, path: path, cert: &pair, header: http.Header{}}
	for _, field := range header {
		name, value, _ := strings.Cut(field, ": ")
		d.header.Set(name, value)
	}
	return d
}

// TestOrigin_CrossSiteStartsNothing: a page of another site cannot start a run with the client certificate of its
// reader, by any name of the server.
func TestOrigin_CrossSiteStartsNothing(t *testing.T) {
	t.Parallel()
	h := newReaders(t)
	first := h.begin("1")
	h.stands(first, runner.Succeeded)
	before := h.startedRuns()
	own := strings.Replace(h.server.URL, "127.0.0.1", "localhost", 1)
	for _, header := range [][]string{
		{"Origin: https://evil.example"},
		{"Origin: null"},
		{"Sec-Fetch-Site: cross-site"},
		{"Sec-Fetch-Site: same-site"},
		{"Host: evil.example", "Origin: https://evil.example"},
		{"Host: evil.example", "Sec-Fetch-Site: same-origin"},
		{"Host: evil.example", "Sec-Fetch-Site: none"},
	} {
		for _, path := range []string{"/start", "/runs/" + first.ID + "/rerun"} {
			if a := h.answers(http.StatusForbidden, h.browsing(http.MethodPost, path, header...)); !strings.Contains(a.body, "urn:sallyport:cross-site") {
				t.Errorf("%v: %s", header, a.body)
			}
		}
		h.answers(http.StatusForbidden, h.browsing(http.MethodDelete, "/runs/"+first.ID, header...))
	}
	h.answers(http.StatusForbidden, h.browsing(http.MethodGet, "/runs", "Host: evil.example", "Sec-Fetch-Site: same-origin"))
	if got := h.startedRuns(); got != before {
		t.Fatalf("%d runs were started", got-before)
	}
	for _, header := range [][]string{nil, {"Origin: " + own, "Host: " + strings.TrimPrefix(own, "https://")}, {"Sec-Fetch-Site: none"}, {"Host: any.example"}} {
		h.answers(http.StatusOK, h.browsing(http.MethodGet, "/runs", header...))
		h.starts(h.browsing(http.MethodPost, "/start", header...))
	}
}

// TestRoutes_EncodedSlash: a path that another server would have read differently is not found.
func TestRoutes_EncodedSlash(t *testing.T) {
	t.Parallel()
	h := newReaders(t)
	run := h.begin("1")
	h.stands(run, runner.Succeeded)
	for _, path := range []string{"/runs%2f" + run.ID, "/runs/" + run.ID + "%2Foutput", "/%2fruns", "/hooks%2fother"} {
		h.answers(http.StatusNotFound, h.get(path))
	}
	h.answers(http.StatusNotFound, h.by("guest", "1").to("/hooks%2fother"))
	h.answers(http.StatusOK, h.by("guest", "1").to("/hooks/other"))
}

// TestRoutes_HeadWhereGetIs: HEAD has the status and the header of GET, and no body.
func TestRoutes_HeadWhereGetIs(t *testing.T) {
	t.Parallel()
	h := newReaders(t)
	h.holdCommands()
	run := h.begin("1")
	h.stands(run, runner.Running)
	for _, path := range []string{"/healthz", "/readyz", "/runs", "/runs/" + run.ID, "/runs/" + run.ID + "/output", "/runs/" + run.ID + "/output?follow"} {
		d := h.get(path)
		d.method = http.MethodHead
		if a := h.answers(http.StatusOK, d); a.body != "" || a.header.Get("Content-Type") == "" {
			t.Errorf("%s: %v %q", path, a.header, a.body)
		}
	}
	for path, want := range map[string]string{"/runs": "GET, HEAD", "/runs/" + run.ID: "DELETE, GET, HEAD", "/start": "POST"} {
		d := h.get(path)
		d.method = http.MethodPut
		if a := h.answers(http.StatusMethodNotAllowed, d); a.header.Get("Allow") != want {
			t.Errorf("%s: Allow %q, want %q", path, a.header.Get("Allow"), want)
		}
	}
	d := h.by("good", "head")
	d.method = http.MethodHead
	h.answers(http.StatusMethodNotAllowed, d)
}

// TestRoutes_AreReserved compares the routes with the paths that no hook may have.
func TestRoutes_AreReserved(t *testing.T) {
	t.Parallel()
	reserved := map[string]bool{"ui": true} // planned
	for _, path := range handlers.FixedPaths() {
		first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
		reserved[first] = true
	}
	if got := slices.Sorted(maps.Keys(reserved)); !slices.Equal(got, slices.Sorted(slices.Values(hook.ReservedPaths()))) {
		t.Errorf("the routes begin with %v, and hooks may not have %v", got, hook.ReservedPaths())
	}
}

// TestPrefer_WaitWithoutNumberIsIgnored ignores such a preference, as RFC 7240 requires.
func TestPrefer_WaitWithoutNumberIsIgnored(t *testing.T) {
	t.Parallel()
	h := newReaders(t)
	h.holdCommands()
	run := h.begin("1")
	for _, prefer := range []string{"wait=soon", "wait=-1", "wait", "wait=", "wait=soon, wait=60", "respond-async"} {
		d := h.get("/runs/" + run.ID)
		d.header.Set("Prefer", prefer)
		if a := h.answers(http.StatusOK, d); a.header.Get("Preference-Applied") != "" {
			t.Errorf("%q: %v", prefer, a.header)
		}
		d = h.by("good", "1")
		d.header.Set("Prefer", prefer)
		h.answers(http.StatusOK, d)
	}
}

func TestTraceparent_IDsOfZerosAreNotPassedOn(t *testing.T) {
	t.Parallel()
	trace, parent := strings.Repeat("0af7651916cd43dd", 2), "b7ad6b7169203331"
	for value, want := range map[string]bool{
		"00-" + trace + "-" + parent + "-01":                   true,
		"00-" + trace + "-" + parent + "-00":                   true,
		"00-" + strings.Repeat("0", 32) + "-" + parent + "-01": false,
		"00-" + trace + "-" + strings.Repeat("0", 16) + "-01":  false,
		"00-" + strings.ToUpper(trace) + "-" + parent + "-01":  false,
		"01-" + trace + "-" + parent + "-01":                   false,
	} {
		if got := handlers.Traceparent(http.Header{"Traceparent": {value}}); (got == value) != want || got != "" && !want {
			t.Errorf("%s: %q", value, got)
		}
	}
}
