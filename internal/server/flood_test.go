package server_test

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net/http"
	"strings"
	"testing"

	"sallyport/internal/netid"
)

// The types and flags of HTTP/2 frames (RFC 9113, 6).
const (
	frameData         = 0
	frameHeaders      = 1
	framePriority     = 2
	frameReset        = 3
	frameSettings     = 4
	framePing         = 6
	frameWindow       = 8
	frameContinuation = 9

	endStream  = 1
	endHeaders = 4
)

// frame is an HTTP/2 frame.
func frame(kind, flags byte, stream uint32, payload string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(kind))
	b = binary.BigEndian.AppendUint32(append(b, flags), stream)
	return append(b, payload...)
}

// request returns the fields of a request in HPACK (RFC 7541): three of the static table, and the authority.
func request(method byte) string { return string([]byte{method, 0x87, 0x84, 0x41, 9}) + "localhost" }

const get, post = 0x82, 0x83

// http2 opens a connection that speaks HTTP/2 and has sent its preface. It discards what the server sends until the
// connection ends.
func (s *served) http2() (c *tls.Conn, ended chan error) {
	s.t.Helper()
	c = tls.Client(s.dial(), &tls.Config{RootCAs: s.roots, ServerName: "localhost", MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}})
	if _, err := io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"+string(frame(frameSettings, 0, 0, ""))); err != nil {
		s.t.Fatal(err)
	}
	ended = make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, bufio.NewReader(c))
		ended <- err
	}()
	return c, ended
}

// TestFlood_EndsConnection sends frames that carry no request, one kind at a time, and reads all answers of the server.
func TestFlood_EndsConnection(t *testing.T) {
	t.Parallel()
	for name, flood := range map[string]struct {
		once  []byte
		again func(stream uint32) []byte
	}{
		"ping":     {again: func(uint32) []byte { return frame(framePing, 0, 0, "12345678") }},
		"settings": {again: func(uint32) []byte { return frame(frameSettings, 0, 0, "\x00\x05\x00\x00\x40\x00") }},
		"priority": {again: func(uint32) []byte { return frame(framePriority, 0, 1, "\x00\x00\x00\x00\x10") }},
		"window":   {again: func(uint32) []byte { return frame(frameWindow, 0, 0, "\x00\x00\x00\x01") }},
		"unknown":  {again: func(uint32) []byte { return frame(0x77, 0, 0, "") }},
		"empty data": {
			once:  frame(frameHeaders, endHeaders, 1, request(post)),
			again: func(uint32) []byte { return frame(frameData, 0, 1, "") },
		},
		"empty continuation": {
			once:  frame(frameHeaders, 0, 1, request(post)),
			again: func(uint32) []byte { return frame(frameContinuation, 0, 1, "") },
		},
		"reset": {again: func(stream uint32) []byte {
			return append(frame(frameHeaders, endHeaders|endStream, stream, request(get)), frame(frameReset, 0, stream, "\x00\x00\x00\x08")...)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all := &surface{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, counted(r)) // as a hook waits for its body
				if netid.ConnectionOf(r).Answer(http.StatusOK) {
					w.Header().Set("Connection", "close")
				}
			})}
			all.left.Store(1 << 30)
			s := serveSurface(t, plenty(), all)
			c, ended := s.http2()
			_, err := c.Write(flood.once)
			sent := 0
			for stream := uint32(1); err == nil && sent < 16<<20; {
				var many []byte
				for range 100 {
					many = append(many, flood.again(stream)...)
					stream += 2
				}
				_, err = c.Write(many)
				sent += len(many)
			}
			if err == nil {
				t.Fatalf("the server took %d bytes and goes on", sent)
			}
			t.Logf("ended after %d KiB, with %v", sent>>10, err)
			<-ended
		})
	}
}

// TestRequests_OrdinaryUseIsNoFlood sends many requests with bodies, and reads large answers, on one connection over
// HTTP/1.1 and HTTP/2.
func TestRequests_OrdinaryUseIsNoFlood(t *testing.T) {
	t.Parallel()
	const requests, size = 100, 100 << 10
	answer := strings.Repeat("x", 1<<20)
	all := &surface{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, counted(r))
		if n != size || err != nil {
			t.Errorf("%d bytes came: %v", n, err)
		}
		netid.ConnectionOf(r).Prove()
		netid.ConnectionOf(r).Answer(http.StatusOK)
		_, _ = io.WriteString(w, answer)
	})}
	all.left.Store(1 << 30)
	s := serveSurface(t, plenty(), all)
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		transport := &http.Transport{
			TLSClientConfig:   &tls.Config{RootCAs: s.roots, ServerName: "localhost", MinVersion: tls.VersionTLS13},
			ForceAttemptHTTP2: protocol == "HTTP/2.0", MaxConnsPerHost: 1,
		}
		for range requests {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+s.address, strings.NewReader(answer[:size]))
			if err != nil {
				t.Fatal(err)
			}
			res, err := transport.RoundTrip(r)
			if err != nil {
				t.Fatalf("%s: %v", protocol, err)
			}
			n, err := io.Copy(io.Discard, res.Body)
			if res.Proto != protocol || int(n) != len(answer) || err != nil {
				t.Fatalf("%s, want %s: %d bytes, %v", res.Proto, protocol, n, err)
			}
			if err := res.Body.Close(); err != nil {
				t.Fatal(err)
			}
		}
		transport.CloseIdleConnections()
	}
	if n := all.flooded.Load(); n > 0 {
		t.Errorf("%d connections were taken for a flood", n)
	}
	if n := (1<<30 - all.left.Load()); n != 2 {
		t.Errorf("%d connections were made, want one for each protocol", n)
	}
}

// counted returns the body of a request. Its bytes are reported as handlers do.
func counted(r *http.Request) io.Reader { return reporting{r} }

type reporting struct{ r *http.Request }

func (c reporting) Read(b []byte) (int, error) {
	n, err := c.r.Body.Read(b)
	netid.ConnectionOf(c.r).Received(n)
	return n, err
}
