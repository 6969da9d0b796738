package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/internal/client"
)

// line is the server's end of a connection. Once it is dead, it behaves as if the server was stopped: the client can
// still send without an error, but receives nothing.
type line struct {
	net.Conn
	dead atomic.Bool
}

func (l *line) Read(b []byte) (int, error) {
	for {
		if n, err := l.Conn.Read(b); err != nil || !l.dead.Load() {
			return n, err
		}
	}
}

func (l *line) Write(b []byte) (int, error) {
	if l.dead.Load() {
		return len(b), nil
	}
	return l.Conn.Write(b)
}

// exchange is a network without a kernel, so that the clock of a bubble advances while no data arrives.
type exchange struct {
	calls chan net.Conn
	last  atomic.Pointer[line]
}

func (e *exchange) dial(context.Context, string, string) (net.Conn, error) {
	near, far := net.Pipe()
	l := &line{Conn: far}
	e.last.Store(l)
	e.calls <- l
	return near, nil
}

// Accept implements net.Listener.
func (e *exchange) Accept() (net.Conn, error) {
	if c, ok := <-e.calls; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

// Close implements net.Listener.
func (e *exchange) Close() error { close(e.calls); return nil }

// Addr implements net.Listener.
func (e *exchange) Addr() net.Addr { return &net.UnixAddr{Name: "exchange"} }

// testSilence calls f, within a bubble, with a client of a server that answers by the steps. The step dies makes its
// connection dead.
func testSilence(t *testing.T, steps func(dies http.HandlerFunc) []http.HandlerFunc, f func(ctx context.Context, c *client.Client, g *gate)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		e := &exchange{calls: make(chan net.Conn)}
		g := &gate{dir: t.TempDir(), steps: steps(func(_ http.ResponseWriter, r *http.Request) {
			synctest.Wait() // until the data that was sent before has arrived
			e.last.Load().dead.Store(true)
			<-r.Context().Done()
		})}
		srv := &http.Server{Handler: g, TLSConfig: g.config(t), ErrorLog: log.New(io.Discard, "", 0)}
		ended := make(chan error)
		go func() { ended <- srv.ServeTLS(e, "", "") }()
		c := must(client.New(client.Options{CA: filepath.Join(g.dir, "ca.pem"), Now: time.Now}))(t)
		c.SetDial(e.dial)
		f(t.Context(), c, g)
		c.CloseIdle()
		if err := errors.Join(srv.Close(), <-ended); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
}

// holdRequest does not answer its request. The server works otherwise.
func holdRequest(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

func TestFollow_ServerHangs(t *testing.T) {
	for name, hangs := range map[string]func(dies http.HandlerFunc) http.HandlerFunc{
		"stopped":            func(dies http.HandlerFunc) http.HandlerFunc { return dies },
		"in a handler":       func(http.HandlerFunc) http.HandlerFunc { return holdRequest },
		"stopped in between": func(dies http.HandlerFunc) http.HandlerFunc { return answerPart(6, "more\n", dies) },
	} {
		t.Run(name, func(t *testing.T) {
			testSilence(t, func(dies http.HandlerFunc) []http.HandlerFunc {
				return []http.HandlerFunc{answerPart(0, "first\n", breakOff), hangs(dies), func(w http.ResponseWriter, r *http.Request) {
					var from int
					_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
					answerPart(from, "last")(w, r)
				}}
			}, func(ctx context.Context, c *client.Client, g *gate) {
				start := time.Now()
				var got strings.Builder
				if err := c.Follow(ctx, "https://localhost", "r1", &got); err != nil || strings.Replace(got.String(), "more\n", "", 1) != "first\nlast" {
					t.Errorf("got %q, %v", got.String(), err)
				}
				if took := time.Since(start); took > 70*time.Second { // by the bubble's clock: a minute, and the pause before the next try
					t.Errorf("it took %v", took)
				}
				if n := len(g.requestLines()); n != 3 {
					t.Errorf("%d requests", n)
				}
			})
		})
	}
}

func TestFollow_SilentCommand(t *testing.T) {
	testSilence(t, func(http.HandlerFunc) []http.HandlerFunc {
		return []http.HandlerFunc{answerPart(0, "first\n", func(w http.ResponseWriter, _ *http.Request) {
			<-time.After(24 * time.Hour)
			_, _ = io.WriteString(w, "last")
		})}
	}, func(ctx context.Context, c *client.Client, g *gate) {
		var got strings.Builder
		if err := c.Follow(ctx, "https://localhost", "r1", &got); err != nil || got.String() != "first\nlast" {
			t.Errorf("got %q, %v", got.String(), err)
		}
		if n := len(g.requestLines()); n != 1 {
			t.Errorf("%d requests", n)
		}
	})
}

func TestRuns_ServerHangs(t *testing.T) {
	head := func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "{")
		_ = http.NewResponseController(w).Flush()
	}
	for name, step := range map[string]func(dies http.HandlerFunc) http.HandlerFunc{
		"stopped":                   func(dies http.HandlerFunc) http.HandlerFunc { return dies },
		"in a handler":              func(http.HandlerFunc) http.HandlerFunc { return holdRequest },
		"in an answer":              func(http.HandlerFunc) http.HandlerFunc { return inTurn(head, holdRequest) },
		"stopped during the answer": func(dies http.HandlerFunc) http.HandlerFunc { return inTurn(head, dies) },
	} {
		t.Run(name, func(t *testing.T) {
			testSilence(t, func(dies http.HandlerFunc) []http.HandlerFunc { return []http.HandlerFunc{step(dies)} }, func(ctx context.Context, c *client.Client, _ *gate) {
				start := time.Now()
				if _, err := c.Run(ctx, "https://localhost", "r1"); client.ExitCode(err) != client.ExitUnreachable {
					t.Error(err)
				}
				if took := time.Since(start); took > 2*time.Minute { // by the bubble's clock
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

func inTurn(steps ...http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		for _, step := range steps {
			step(w, r)
		}
	}
}
