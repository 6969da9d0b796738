package client_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"sallyport/internal/client"
)

// answerPart answers with output from an offset on, and continues with the next step. The step cut breaks off the
// answer.
func answerPart(at int, text string, then ...http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/*", at, 1<<53-2))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = io.WriteString(w, text)
		_ = http.NewResponseController(w).Flush()
		for _, step := range then {
			step(w, r)
		}
	}
}

// asking records the offset at which each request asks to continue.
func asking(from *[]string, steps ...http.HandlerFunc) (noted []http.HandlerFunc) {
	for _, step := range steps {
		noted = append(noted, func(w http.ResponseWriter, r *http.Request) {
			*from = append(*from, r.Header.Get("Range"))
			step(w, r)
		})
	}
	return noted
}

func TestFollow_ContinuesWhereItWas(t *testing.T) {
	var from []string
	g := newGate(t, asking(&from,
		breakOff, answerRefusal(503, "2"), answerPart(0, "", breakOff), answerPart(0, "first\n", breakOff), answerPart(6, "\xff\n", breakOff), answerPart(100, "last", breakOff), answerPart(104, ""))...)
	c, k := g.client(t, client.Options{})
	var got strings.Builder
	if err := c.Follow(t.Context(), g.server.URL, "r1", &got); err != nil {
		t.Fatal(err)
	}
	if want := "first\n\xff\n\n[92 bytes not kept]\nlast"; got.String() != want {
		t.Errorf("got %q, want %q", got.String(), want)
	}
	wantEqual(t, "asked for", from, []string{"bytes=0-", "bytes=0-", "bytes=0-", "bytes=0-", "bytes=6-", "bytes=8-", "bytes=104-"})
	wantEqual(t, "waits", k.waits, []time.Duration{5 * time.Second, 2 * time.Second, time.Second}) // not after a part of the output
}

func TestFollow_ServerOnlyBreaksOff(t *testing.T) {
	g := newGate(t, answerPart(0, "first\n", breakOff), answerPart(6, "", breakOff))
	c, k := g.client(t, client.Options{})
	start := k.now
	err := c.Follow(t.Context(), g.server.URL, "r1", io.Discard)
	if !errors.Is(err, client.ErrUnreachable) || !strings.Contains(err.Error(), "broke off") {
		t.Fatal(err)
	}
	if away := k.now.Sub(start); away < time.Minute || away > 2*time.Minute {
		t.Errorf("gave up after %v", away)
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("full") }

func TestFollow_CannotContinue(t *testing.T) {
	for name, row := range map[string]struct {
		steps []http.HandlerFunc
		to    io.Writer
		code  int
	}{
		"nowhere to write":          {[]http.HandlerFunc{answerPart(0, "first\n", breakOff)}, full{}, client.ExitLocal},
		"another part than asked":   {[]http.HandlerFunc{answerPart(0, "first\n", breakOff), answerPart(0, "first\n")}, io.Discard, client.ExitServer},
		"all of it again":           {[]http.HandlerFunc{answerPart(0, "first\n", breakOff), answerRun(running)}, io.Discard, client.ExitServer},
		"what is not kept any more": {[]http.HandlerFunc{answerRefusal(404, "")}, io.Discard, client.ExitMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGate(t, row.steps...)
			c, k := g.client(t, client.Options{})
			err := c.Follow(t.Context(), g.server.URL, "r1", row.to)
			if client.ExitCode(err) != row.code {
				t.Error(err)
			}
			if len(g.got) != len(row.steps) || len(k.waits) > 0 {
				t.Errorf("after %d requests and %v", len(g.got), k.waits)
			}
		})
	}
}

func TestOutput_BreaksOff(t *testing.T) {
	g := newGate(t, answerPart(0, "first\n", breakOff))
	c, _ := g.client(t, client.Options{})
	if err := c.Output(t.Context(), g.server.URL, "r1", io.Discard); !errors.Is(err, client.ErrUnreachable) {
		t.Error(err)
	}
}

func TestRuns_NextPage(t *testing.T) {
	for next, want := range map[string]string{"": "", "/runs?before=r0\\u0026limit=1": "r0", "/runs": "error", "%": "error"} {
		g := newGate(t, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = fmt.Fprintf(w, `{"runs":[],"next":"%s"}`, next)
		})
		c, _ := g.client(t, client.Options{})
		p, err := c.Runs(t.Context(), g.server.URL, nil)
		if got := p.Next; got != want && (want != "error" || !errors.Is(err, client.ErrAnswer)) {
			t.Errorf("%q leads to %q, %v", next, got, err)
		}
	}
}
