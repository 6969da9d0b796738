package handlers_test

import (
	"database/sql"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// unlimited is for tests that send many requests.
const unlimited = "address: {rate: 1000000/s, burst: 1000000}"

// becomes waits until the answer for a page has a status.
func (h *house) becomes(status int, path string) {
	h.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for range 600 {
		a, err := h.send(delivery{method: http.MethodGet, path: path})
		if err != nil {
			h.t.Fatal(err)
		}
		if a.status == status {
			return
		}
		<-tick.C
	}
	h.t.Fatalf("%s is never answered with %d", path, status)
}

// TestReady_NamesWhatIsBroken: each part is broken and repaired, and what needs it is refused until then.
func TestReady_NamesWhatIsBroken(t *testing.T) {
	t.Parallel()
	moved := func(name string) func(*house) func() {
		return func(h *house) func() {
			from, to := filepath.Join(h.config.Get().State, name), filepath.Join(h.dir, "away")
			mustSucceed(h.t, os.Rename(from, to))
			return func() { mustSucceed(h.t, os.Rename(to, from)) }
		}
	}
	for what, c := range map[string]struct {
		part     string
		spoil    func(*house) (mend func())
		delivery int // its status meanwhile; 0 if it waits
	}{
		"database removed": {"store", moved("state.db"), http.StatusServiceUnavailable},
		"audit removed":    {"audit", moved("audit"), http.StatusServiceUnavailable},
		"store hangs": {"store", func(h *house) func() {
			// The store waits for a lock of another process.
			db, err := sql.Open("sqlite", "file:"+filepath.Join(h.config.Get().State, "state.db"))
			mustSucceed(h.t, err)
			conn, err := db.Conn(h.t.Context())
			mustSucceed(h.t, err)
			_, err = conn.ExecContext(h.t.Context(), `BEGIN IMMEDIATE`)
			mustSucceed(h.t, err)
			return func() {
				mustSucceed(h.t, conn.Close())
				mustSucceed(h.t, db.Close())
			}
		}, 0},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t, unlimited)
			h.answers(http.StatusOK, delivery{method: http.MethodGet, path: "/readyz"})
			mend := c.spoil(h)
			h.becomes(http.StatusServiceUnavailable, "/readyz")
			a := h.answers(http.StatusServiceUnavailable, delivery{method: http.MethodGet, path: "/readyz"})
			var problem struct{ Parts []string }
			mustSucceed(t, json.Unmarshal([]byte(a.body), &problem))
			if !slices.Equal(problem.Parts, []string{c.part}) {
				t.Errorf("got %s", a.body)
			}
			head := h.answers(http.StatusServiceUnavailable, delivery{method: http.MethodHead, path: "/readyz"})
			if head.body != "" {
				t.Errorf("HEAD is answered with %q", head.body)
			}
			if c.delivery > 0 {
				h.answers(c.delivery, h.by("good", "1"))
			}
			mend()
			h.becomes(http.StatusOK, "/readyz")
			h.starts(h.by("good", "1"))
		})
	}
}

// TestHead_IsAnsweredWhereGetIs: HEAD is answered where GET is. The answer to another method names both in Allow.
func TestHead_IsAnsweredWhereGetIs(t *testing.T) {
	t.Parallel()
	h := newHouse(t, "")
	for _, path := range []string{"/healthz", "/readyz"} {
		if a := h.answers(http.StatusOK, delivery{method: http.MethodHead, path: path}); a.body != "" || a.header.Get("Content-Length") == "" {
			t.Errorf("%s: %v %q", path, a.header, a.body)
		}
	}
	a := h.answers(http.StatusMethodNotAllowed, delivery{method: http.MethodPut, path: "/readyz"})
	if a.header.Get("Allow") != "GET, HEAD" {
		t.Errorf("Allow: %s", a.header.Get("Allow"))
	}
}

func mustSucceed(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
