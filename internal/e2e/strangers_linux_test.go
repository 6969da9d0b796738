package e2e_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sallyport/internal/client"
	"sallyport/internal/testenv"
)

// connectionFlood is a server under attack from many addresses of this machine: on Linux all of 127.0.0.0/8.
type connectionFlood struct {
	t       *testing.T
	trusted *x509.CertPool
	address string
	sign    client.Signer
	server  int // process id
	stop    chan struct{}
	all     sync.WaitGroup
}

// newConnectionFlood starts the program with the default limits for unauthenticated requests.
func newConnectionFlood(t *testing.T) *connectionFlood {
	t.Helper()
	dir := makeFolder(t, `
limits: {caller: {rate: 1000/s, burst: 1000}}
callers:
  good: {hmac: {scheme: github, keys: [{file: secret}]}}
hooks:
  usual: {callers: [good], command: [/bin/true], busy: {queue: 10000}}
  large: {callers: [good], command: [/bin/true], busy: {queue: 10000}, body: {max: 25MiB, timeout: 1m}}
`)
	buildShipped(t, dir)
	return startConnectionFlood(t, dir)
}

// startConnectionFlood starts the program in a folder with a configuration.
func startConnectionFlood(t *testing.T, dir string) *connectionFlood {
	t.Helper()
	serve := exec.Command(filepath.Join(dir, "sallyport"), "serve", "--config", filepath.Join(dir, "sallyport.yaml")) //nolint:noctx // ended by a signal
	s := &connectionFlood{
		t: t, trusted: roots(t, filepath.Join(dir, "certs", "ca.pem")), stop: make(chan struct{}),
		address: strings.Replace(strings.TrimPrefix(startListening(t, t.TempDir(), serve), "https://"), "localhost", "127.0.0.1", 1),
	}
	s.server = serve.Process.Pid
	var err error
	s.sign, err = client.HMAC("github", []byte("a secret of thirty-two bytes or so"))
	mustSucceed(t, err)
	t.Cleanup(func() { close(s.stop); s.all.Wait() })
	return s
}

func (s *connectionFlood) dial(from string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	return d.DialContext(s.t.Context(), "tcp4", s.address)
}

func (s *connectionFlood) dialTLS(from string) (*tls.Conn, error) {
	plain, err := s.dial(from)
	if err != nil {
		return nil, err
	}
	c := tls.Client(plain, &tls.Config{RootCAs: s.trusted, ServerName: "localhost", MinVersion: tls.VersionTLS13})
	if err := c.HandshakeContext(s.t.Context()); err != nil {
		_ = plain.Close()
		return nil, err
	}
	return c, nil
}

// holdConnections lets n attackers hold what open begins, and begin again when the server ends it. It returns when each
// attacker has held it once.
func (s *connectionFlood) holdConnections(n int, open func(i int) (net.Conn, error)) {
	var held sync.WaitGroup
	held.Add(n)
	for i := range n {
		s.all.Go(func() {
			first := sync.OnceFunc(held.Done)
			again := time.NewTicker(100 * time.Millisecond)
			defer again.Stop()
			for {
				if c, err := open(i); err == nil {
					first()
					s.awaitClose(c)
				}
				select {
				case <-s.stop:
					return
				case <-again.C:
				}
			}
		})
	}
	held.Wait()
}

// awaitClose waits for the end of a connection or of the attack.
func (s *connectionFlood) awaitClose(c net.Conn) {
	ended := make(chan struct{})
	go func() { _, _ = io.Copy(io.Discard, c); close(ended) }()
	select {
	case <-ended:
	case <-s.stop:
	}
	_ = c.Close()
	<-ended
}

// sendPartOfBody sends a part of a body and stops.
func (s *connectionFlood) sendPartOfBody(from, path string, declared, sent int) (net.Conn, error) {
	c, err := s.dialTLS(from)
	if err != nil {
		return nil, err
	}
	_, err = fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n", path, declared)
	if err == nil {
		_, _ = c.Write(make([]byte, sent)) // the server may refuse a part of it
	}
	return c, err
}

// sendGoodDelivery sends a good delivery on a new connection.
func (s *connectionFlood) sendGoodDelivery(from, path string, size int) error {
	id := rand.Text()
	body := append([]byte(id), bytes.Repeat([]byte(" "), size-len(id))...)
	header, err := s.sign(id, body, time.Now())
	if err != nil {
		return err
	}
	c, err := s.dialTLS(from)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // the answer is there
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, "https://localhost"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header = header
	if err := r.Write(c); err != nil {
		return err
	}
	res, err := http.ReadResponse(bufio.NewReader(c), r)
	if err != nil {
		return err
	}
	text, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode >= 300 {
		err = fmt.Errorf("%s: %s", res.Status, text)
	}
	_ = res.Body.Close()
	return err
}

// TestFlood_GoodDeliveries counts the good deliveries that are refused while attackers without a credential hold all
// that they can.
func TestFlood_GoodDeliveries(t *testing.T) {
	t.Parallel()
	testenv.Long(t)
	deliveries := testenv.AttackCount(15, 50) // of each size: together within the burst of one address
	for why, attack := range map[string]func(s *connectionFlood){
		"16 silent addresses": func(s *connectionFlood) {
			s.holdConnections(16*64, func(i int) (net.Conn, error) { return s.dial(fmt.Sprintf("127.%d.0.1", 10+i%16)) })
		},
		"2 addresses with stopped bodies": func(s *connectionFlood) {
			s.holdConnections(2*40, func(i int) (net.Conn, error) {
				return s.sendPartOfBody(fmt.Sprintf("127.%d.0.1", 10+i%2), "/hooks/usual", 1<<20, 1<<20-1)
			})
		},
		"2 addresses with large bodies": func(s *connectionFlood) {
			s.holdConnections(2*4, func(i int) (net.Conn, error) {
				return s.sendPartOfBody(fmt.Sprintf("127.%d.0.1", 10+i%2), "/hooks/large", 25<<20, 24<<20)
			})
		},
	} {
		t.Run(why, func(t *testing.T) {
			s := newConnectionFlood(t)
			attack(s)
			failed := 0
			for range deliveries {
				for _, size := range []int{20 << 10, 1 << 20} {
					if err := s.sendGoodDelivery("127.9.0.1", "/hooks/usual", size); err != nil {
						t.Log(err)
						failed++
					}
				}
			}
			t.Logf("%d of %d good deliveries were refused", failed, 2*deliveries)
			if failed > 0 {
				t.Fail()
			}
		})
	}
}

// TestFlood_Refusals repeats requests for a path that does not exist.
func TestFlood_Refusals(t *testing.T) {
	t.Parallel()
	s := newConnectionFlood(t)
	c, err := s.dialTLS("127.10.0.1")
	mustSucceed(t, err)
	defer c.Close() //nolint:errcheck // the server has closed it
	mustSucceed(t, c.SetDeadline(time.Now().Add(time.Minute)))
	answers := bufio.NewReader(c)
	n := 0
	for ; n < 100; n++ {
		if _, err := io.WriteString(c, "GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
			break
		}
		res, err := http.ReadResponse(answers, nil)
		if err != nil {
			break
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
	}
	if n != 20 {
		t.Errorf("%d refusals on one connection, want 20", n)
	}
}
