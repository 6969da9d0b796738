package handlers_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"sallyport/handlers"
	"sallyport/internal/testenv"
)

// upload is a request on a separate connection, whose body a test sends in parts.
type upload struct {
	t *testing.T
	c *tls.Conn
}

// newRoomHouse serves the hook start, with bodies up to 1 MiB, and with large also the hook large, with bodies up to
// 16 MiB. Requests come from the address in their header X-From.
func newRoomHouse(t *testing.T, large bool) (*house, *handlers.Handler) {
	t.Helper()
	hooks := "  start: {path: /start, callers: [good], command: [/bin/true], busy: {queue: 1000}, body: {timeout: 1m}}\n"
	if large {
		hooks += "  large: {path: /large, callers: [good], command: [/bin/true], busy: {queue: 1000}, body: {max: 16MiB, timeout: 1m}}\n"
	}
	h := build(t, t.TempDir(), `
listen: "localhost:0"
state: state
tls: {cert: certs/server.pem, key: certs/server.key}
limits: {address: {rate: 1000000/s, burst: 1000000}, caller: {rate: 1000000/s, burst: 1000000}}
callers:
  good: {hmac: {scheme: github, keys: [{file: good}]}}
hooks:
`+hooks)
	handler := h.newHandler(slog.New(slog.NewJSONHandler(h.log, nil)))
	h.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if from := r.Header.Get("X-From"); from != "" {
			r.RemoteAddr = from + ":1"
		}
		handler.ServeHTTP(w, r)
	}))
	return h, handler
}

// upload begins a request from an address.
func (h *house) upload(from, path string, declared int) *upload {
	h.t.Helper()
	c, err := (&tls.Dialer{Config: h.clientTLS()}).DialContext(h.t.Context(), "tcp", strings.TrimPrefix(h.server.URL, "https://"))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		h.t.Fatal(err)
	}
	u := &upload{h.t, c.(*tls.Conn)}
	_, err = fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: localhost\r\nX-From: %s\r\nContent-Length: %d\r\n\r\n", path, from, declared)
	if err != nil {
		h.t.Fatal(err)
	}
	return u
}

// send sends so many bytes of the body, as far as the server reads them.
func (u *upload) send(n int) { _, _ = u.c.Write(make([]byte, n)) }

// answer returns the status and the text of the answer.
func (u *upload) answer() (int, string) {
	u.t.Helper()
	res, err := http.ReadResponse(bufio.NewReader(u.c), nil)
	if err != nil {
		u.t.Fatal(err)
	}
	text, err := io.ReadAll(res.Body)
	if err != nil {
		u.t.Error(err)
	}
	_ = res.Body.Close()
	return res.StatusCode, string(text)
}

// awaitHeld waits until unverified bodies hold so much room.
func awaitHeld(t *testing.T, handler *handlers.Handler, want int64) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for range 30_000 {
		if handler.Held() == want {
			return
		}
		<-tick.C
	}
	t.Fatalf("%d bytes are held, want %d", handler.Held(), want)
}

// deliver sends an acceptable delivery with a body of a given size from an address.
func (h *house) deliver(from, path string, n int) answer {
	h.t.Helper()
	id := rand.Text() // so that it is not a replay
	d := h.by("good", id+strings.Repeat(" ", max(n-len(id), 0)))
	d.header.Set("X-From", from)
	a, err := h.send(d.to(path))
	if err != nil {
		h.t.Fatal(err)
	}
	return a
}

// TestRoom_IsGivenInSteps declares a large body, and sends less.
func TestRoom_IsGivenInSteps(t *testing.T) {
	t.Parallel()
	h, handler := newRoomHouse(t, true)
	u := h.upload("192.0.2.1", "/large", 16<<20)
	u.send(16 << 10)
	awaitHeld(t, handler, 80<<10) // the space for the next bytes is reserved already
	u.send(2 << 20)
	awaitHeld(t, handler, 2<<20+80<<10)
	_ = u.c.Close()
	awaitHeld(t, handler, 0)
}

// TestRoom_StoppedBodiesGiveWay has two sites fill all room and stop one byte before the end. Deliveries from other
// sites are accepted, also those from an unknown address.
func TestRoom_StoppedBodiesGiveWay(t *testing.T) {
	t.Parallel()
	h, handler := newRoomHouse(t, false)
	var stopped []*upload
	for range 8 {
		for _, from := range []string{"192.0.2.1", "198.51.100.1"} {
			u := h.upload(from, "/start", 1<<20)
			u.send(1<<20 - 1)
			stopped = append(stopped, u)
		}
	}
	awaitHeld(t, handler, 16<<20)
	for _, n := range []int{17 << 10, 100 << 10, 1 << 20} {
		for i := range 3 {
			if a := h.deliver(fmt.Sprintf("203.0.113.%d", i), "/start", n); a.status >= 300 {
				t.Errorf("a delivery of %d bytes got %d: %s", n, a.status, a.body)
			}
		}
	}
	lost := 0
	for _, u := range stopped {
		_ = u.c.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) // most of them continue to wait
		if res, err := http.ReadResponse(bufio.NewReader(u.c), nil); err == nil {
			if lost++; res.StatusCode != http.StatusServiceUnavailable && res.StatusCode != http.StatusRequestTimeout {
				t.Errorf("one that gave way got %d", res.StatusCode)
			}
			_ = res.Body.Close()
		}
	}
	if lost == 0 {
		t.Error("no body gave way")
	}
}

// TestRoom_StoppedNeighbourGivesWay has one body take all room that its site may have.
func TestRoom_StoppedNeighbourGivesWay(t *testing.T) {
	t.Parallel()
	h, handler := newRoomHouse(t, true)
	stopped := h.upload("[2001:db8:1:1::1]", "/large", 16<<20)
	stopped.send(16<<20 - 1)
	awaitHeld(t, handler, 16<<20)
	if a := h.deliver("[2001:db8:2:1::1]", "/start", 100<<10); a.status != http.StatusOK {
		t.Errorf("a delivery from elsewhere got %d: %s", a.status, a.body)
	}
	awaitHeld(t, handler, 16<<20)
	// The body counts as fast until it has been idle for a time.
	neighbour := func() int { return h.deliver("[2001:db8:1:2::1]", "/start", 100<<10).status }
	for status := neighbour(); status != http.StatusOK; status = neighbour() {
		if status != http.StatusServiceUnavailable && status != http.StatusAccepted {
			t.Fatalf("a delivery of the same site got %d", status)
		}
	}
	if status, _ := stopped.answer(); status != http.StatusServiceUnavailable {
		t.Errorf("the body that stopped got %d", status)
	}
	awaitHeld(t, handler, 0)
}

// TestRoom_KnownAddressesComeFirst has many sites share all room evenly: an unknown address gets no more than each of
// them has, and a known address does.
func TestRoom_KnownAddressesComeFirst(t *testing.T) {
	t.Parallel()
	h, handler := newRoomHouse(t, true)
	if a := h.deliver("203.0.113.1", "/start", 10); a.status != http.StatusOK {
		t.Fatal(a)
	}
	var stopped []*upload
	for i := range 32 {
		u := h.upload(fmt.Sprintf("198.51.%d.1", i), "/start", 1<<20)
		u.send(1<<20 - 1)
		stopped = append(stopped, u)
	}
	awaitHeld(t, handler, 32<<20)
	stranger := h.upload("203.0.112.1", "/large", 2<<20)
	go stranger.send(2<<20 - 1) // the answer arrives meanwhile
	if status, text := stranger.answer(); status != http.StatusServiceUnavailable {
		t.Errorf("a stranger got %d: %s", status, text)
	}
	if a := h.deliver("203.0.113.1", "/large", 2<<20); a.status >= 300 {
		t.Errorf("an address that is known got %d: %s", a.status, a.body)
	}
	for _, u := range stopped {
		_ = u.c.Close()
	}
	awaitHeld(t, handler, 0)
}

// TestBody_TooSlow sends only one byte, over HTTP/1.1 and HTTP/2.
func TestBody_TooSlow(t *testing.T) {
	t.Parallel()
	h, _ := newRoomHouse(t, false)
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			body, send := io.Pipe()
			defer send.Close() //nolint:errcheck // of a pipe
			go func() { _, _ = send.Write([]byte("x")) }()
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.server.URL+"/start", body)
			if err != nil {
				t.Fatal(err)
			}
			r.ContentLength = 1 << 20
			transport := &http.Transport{TLSClientConfig: h.clientTLS(), ForceAttemptHTTP2: protocol == "HTTP/2.0"}
			defer transport.CloseIdleConnections()
			res, err := transport.RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close() //nolint:errcheck // it has been read
			text, _ := io.ReadAll(res.Body)
			if res.StatusCode != http.StatusRequestTimeout || !bytes.Contains(text, []byte("too slowly")) || res.Proto != protocol {
				t.Errorf("%s %s: %s", res.Proto, res.Status, text)
			}
		})
	}
}

// TestBody_ArrivesAsItWasSent sends bodies of all sizes around the steps in which room is reserved, and checks what
// the command reads.
func TestBody_ArrivesAsItWasSent(t *testing.T) {
	t.Parallel()
	const most = 300 << 10
	sha256sum, err := exec.LookPath("sha256sum")
	if err != nil {
		testenv.Skip(t, "that a body arrives at a command as it was sent: "+err.Error())
	}
	dir := t.TempDir()
	h := build(t, dir, fmt.Sprintf(`
listen: "localhost:0"
state: state
tls: {cert: certs/server.pem, key: certs/server.key}
limits: {address: {rate: 1000000/s, burst: 1000000}, caller: {rate: 1000000/s, burst: 1000000}}
callers:
  good: {hmac: {scheme: github, keys: [{file: good}]}}
hooks:
  start: {path: /start, callers: [good], command: [%s], stdin: body, busy: {queue: 100}, body: {max: %d}}
`, sha256sum, most))
	sums := map[string]string{} // by run
	for _, n := range []int{1, 16<<10 - 1, 16 << 10, 16<<10 + 1, 80 << 10, 80<<10 + 1, most - 1, most} {
		for _, chunked := range []bool{false, true} {
			text := bytes.Repeat([]byte{byte(n), 'x'}, n)[:n]
			text[n-1] = '0'
			if chunked {
				text[0] = '1'
			}
			d := h.by("good", string(text))
			if chunked {
				d.upload = io.MultiReader(bytes.NewReader(text))
			}
			a, err := h.send(d)
			if err != nil || a.status >= 300 {
				t.Fatal(a, err)
			}
			_, id, _ := strings.Cut(a.body, `"id":"`)
			id, _, _ = strings.Cut(id, `"`)
			sum := sha256.Sum256(text)
			sums[id] = hex.EncodeToString(sum[:])
		}
	}
	for id, sum := range sums { // those that were queued started long after their delivery was answered
		wait := h.get("/runs/" + id)
		wait.header.Set("Prefer", "wait=60")
		h.answers(http.StatusOK, wait)
		if out := h.answers(http.StatusOK, h.get("/runs/"+id+"/output")); !strings.HasPrefix(out.body, sum) {
			t.Errorf("the command read something else: %s", out.body)
		}
	}
	d := h.by("good", strings.Repeat("x", most+1))
	for _, body := range []io.Reader{nil, io.MultiReader(strings.NewReader(d.body))} {
		d.upload = body
		h.answers(http.StatusRequestEntityTooLarge, d)
	}
}
