package e2e_test

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"sallyport/internal/testenv"
)

// The attacks of TestAttack are bounded: each lasts for ATTACK (a duration, 200ms by default), sends to
// loopback addresses only, and no worker sends more than a thousand times a second.

const (
	attackMemory = 150 << 10 // KiB that the server may take under any attack
	goodAddress  = "127.9.0.1"
	badToken     = "Bearer a secret of thirty-two bytes or so, of bad"
)

const attacked = `
limits: {connections_per_address: 256}
metrics: {callers: [bad]}
callers:
  good: {hmac: {scheme: github, keys: [{file: secret}]}, limit: {rate: 1000/s, burst: 1000}}
  bad: {token: {keys: [{file: bad}]}, limit: {rate: 100000/s, burst: 100000}}
  shown: {mtls: {cn: shown, ca: authority.pem}}
hooks:
  usual: {callers: [good, shown, {caller: bad, may: [read]}], command: [/bin/true], busy: {queue: 10000}}
  bad:
    callers: [bad]
    command: [/bin/true]
    params: {note: {from: body.note, match: "(?s).*"}}
    env: {NOTE: "{note}"}
    busy: {queue: 10000}
`

// attackTest is a server under attack, with a good caller and a hostile one.
type attackTest struct {
	*connectionFlood

	t       *testing.T
	dir     string
	good    http.Header // a good delivery that attackers have seen
	body    []byte
	signCRL func(extension int, serials ...*big.Int) []byte
}

// newAttackTest starts a program that is attacked.
func newAttackTest(t *testing.T, program string) *attackTest {
	t.Helper()
	dir := makeFolder(t, attacked)
	write(t, filepath.Join(dir, "bad"), []byte(strings.TrimPrefix(badToken, "Bearer ")))
	mustSucceed(t, os.Symlink(program, filepath.Join(dir, "sallyport")))
	sign := makeCRL(t, dir)
	a := &attackTest{connectionFlood: startConnectionFlood(t, dir), t: t, dir: dir, signCRL: sign, body: []byte("a delivery that everyone has seen")}
	var err error
	a.good, err = a.sign("seen", a.body, time.Now())
	mustSucceed(t, err)
	return a
}

// makeCRL adds a CA and its CRL to the configuration. It returns a function that signs further CRLs with an extension
// of a given size.
func makeCRL(t *testing.T, dir string) (sign func(extension int, serials ...*big.Int) []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	mustSucceed(t, err)
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte{1},
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	mustSucceed(t, err)
	sign = func(extension int, serials ...*big.Int) []byte {
		list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: now.Add(-time.Hour), NextUpdate: now.Add(100 * time.Hour)}
		if extension > 0 {
			list.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: make([]byte, extension)}}
		}
		for _, n := range serials {
			list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: n, RevocationTime: now})
		}
		der, err := x509.CreateRevocationList(rand.Reader, list, ca, key)
		mustSucceed(t, err)
		return der
	}
	write(t, filepath.Join(dir, "authority.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	write(t, filepath.Join(dir, "revoked.crl"), sign(0, big.NewInt(7)))
	config := filepath.Join(dir, "sallyport.yaml")
	text, err := os.ReadFile(config)
	mustSucceed(t, err)
	write(t, config, bytes.Replace(text, []byte("server.key}"), []byte("server.key, client_crl: [revoked.crl]}"), 1))
	return sign
}

// replaceCRL replaces the CRL by files that cost a reader memory or time, one after the other. It returns when the
// server has refused each of them once.
func (a *attackTest) replaceCRL() {
	a.t.Helper()
	many := make([]*big.Int, 600_000)
	for i := range many {
		many[i] = big.NewInt(int64(i))
	}
	forged := a.signCRL(0, many...)
	forged[len(forged)-1] ^= 1
	bombs := [][]byte{
		forged, a.signCRL(0, new(big.Int).Lsh(big.NewInt(1), 8*(8<<20))), a.signCRL(12 << 20),
		bytes.Repeat([]byte{0x30, 0x84, 0, 0xff, 0xff, 0}, 2<<20), bytes.Repeat([]byte("-----BEGIN X509 CRL-----\n"), 500_000), make([]byte, 100<<20),
	}
	for i, bomb := range bombs {
		if !a.refusesCRL(bomb) {
			a.t.Fatalf("the server has not refused CRL %d", i)
		}
	}
	a.all.Go(func() {
		i := 0
		for a.refusesCRL(bombs[i%len(bombs)]) {
			i++
		}
	})
}

// refusesCRL reports whether the server refuses a CRL before the attack is over.
func (a *attackTest) refusesCRL(text []byte) bool {
	before := a.countRefusedReloads()
	fresh := filepath.Join(a.dir, "new.crl")
	if err := os.WriteFile(fresh, text, 0o600); err != nil {
		return false
	}
	if err := os.Rename(fresh, filepath.Join(a.dir, "revoked.crl")); err != nil {
		return false
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for range 600 {
		select {
		case <-a.stop:
			return false
		case <-tick.C:
		}
		if a.countRefusedReloads() > before {
			return true
		}
	}
	return false
}

// countRefusedReloads returns how many reloads the server refused.
func (a *attackTest) countRefusedReloads() int {
	_, text, err := a.sendAsHostileCaller(198, "GET", "/metrics", nil)
	if err != nil {
		return 0
	}
	found := regexp.MustCompile(`(?m)^sallyport_reloads_total\{result="failed"\} (\d+)$`).FindSubmatch(text)
	if found == nil {
		return 0
	}
	n, _ := strconv.Atoi(string(found[1])) // digits
	return n
}

// repeatInWorkers repeats do in several workers until the attack is over.
func (a *attackTest) repeatInWorkers(workers int, do func(worker int) error) {
	for i := range workers {
		a.all.Go(func() {
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for {
				_ = do(i) // the result does not matter
				select {
				case <-a.stop:
					return
				case <-tick.C:
				}
			}
		})
	}
}

// strangerAddress returns one of many addresses, each in another /16 network.
func strangerAddress(i int) string { return fmt.Sprintf("127.%d.0.1", 10+i%100) }

// request sends a request on a new connection and reads the answer.
func (a *attackTest) request(from, method, path string, header http.Header, body []byte) (status int, answer []byte, err error) {
	c, err := a.dialTLS(from)
	if err != nil {
		return 0, nil, err
	}
	defer c.Close() //nolint:errcheck // the answer is there
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return 0, nil, err
	}
	r, err := http.NewRequest(method, "https://localhost"+path, bytes.NewReader(body)) //nolint:noctx // the connection has a deadline
	if err != nil {
		return 0, nil, err
	}
	if header != nil {
		r.Header = header.Clone()
	}
	if err := r.Write(c); err != nil {
		return 0, nil, err
	}
	res, err := http.ReadResponse(bufio.NewReader(c), r)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close() //nolint:errcheck // read whole
	answer, err = io.ReadAll(res.Body)
	return res.StatusCode, answer, err
}

// sendAsHostileCaller sends a request of the hostile caller.
func (a *attackTest) sendAsHostileCaller(worker int, method, path string, body []byte) (status int, answer []byte, err error) {
	header := http.Header{"Authorization": {badToken}, "Content-Type": {"application/json"}}
	return a.request(fmt.Sprintf("127.8.%d.1", worker%200), method, path, header, body)
}

// repeatFrames repeats HTTP/2 frames after a valid preface.
func (a *attackTest) repeatFrames(from string, opening, repeated []byte) error {
	plain, err := a.dial(from)
	if err != nil {
		return err
	}
	c := tls.Client(plain, &tls.Config{RootCAs: a.trusted, ServerName: "localhost", MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}})
	defer c.Close() //nolint:errcheck // the server has ended it
	go func() { _, _ = io.Copy(io.Discard, c) }()
	many := bytes.Repeat(repeated, 100)
	text := slices.Concat([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"), opening)
	for err == nil {
		select {
		case <-a.stop:
			return nil
		default:
		}
		if err = c.SetDeadline(time.Now().Add(10 * time.Second)); err == nil {
			_, err = c.Write(text)
		}
		text = many
	}
	return err
}

// requestFrame opens a stream with POST /hooks/usual (RFC 9113 6.2, RFC 7541), with flags.
func requestFrame(stream byte, flags byte) []byte {
	block := slices.Concat([]byte{0x83, 0x87, 0x04, 12}, []byte("/hooks/usual"), []byte{0x41, 9}, []byte("localhost"))
	return slices.Concat([]byte{0, 0, byte(len(block)), 1, flags, 0, 0, 0, stream}, block)
}

// attacks returns the attacks by name. The attacker has no credential unless the name says that it is a caller.
func attacks() map[string]func(a *attackTest) {
	deep := []byte(`{"note":` + strings.Repeat("[", 200_000) + strings.Repeat("]", 200_000) + `}`)
	wide := []byte(`{` + strings.Repeat(`"a":1,`, 100_000) + `"note":"x"}`)
	stream := func(a *attackTest, opening, repeated []byte) {
		a.repeatInWorkers(8, func(i int) error { return a.repeatFrames(strangerAddress(i), opening, repeated) })
	}
	return map[string]func(a *attackTest){
		"silent connections": func(a *attackTest) {
			a.holdConnections(16*64, func(i int) (net.Conn, error) { return a.dial(strangerAddress(i % 16)) })
		},
		"requests for unknown paths": func(a *attackTest) {
			a.repeatInWorkers(16, func(i int) error {
				_, _, err := a.request(strangerAddress(i), "GET", "/"+strings.Repeat("x", 4000), nil, nil)
				return err
			})
		},
		"stopped bodies": func(a *attackTest) {
			a.holdConnections(2*40, func(i int) (net.Conn, error) {
				return a.sendPartOfBody(strangerAddress(i%2), "/hooks/usual", 1<<20, 1<<20-1)
			})
		},
		"slow bodies": func(a *attackTest) {
			a.holdConnections(100, func(i int) (net.Conn, error) {
				return a.sendPartOfBody(strangerAddress(i), "/hooks/usual", 1<<20, 20<<10)
			})
		},
		"oversized bodies": func(a *attackTest) {
			a.repeatInWorkers(8, func(i int) error {
				c, err := a.sendPartOfBody(strangerAddress(i), "/hooks/usual", 100<<20, 4<<20)
				if err == nil {
					err = c.Close()
				}
				return err
			})
		},
		"large headers": func(a *attackTest) {
			header := http.Header{"X-Large": {strings.Repeat("x", 1<<20)}}
			a.repeatInWorkers(8, func(i int) error {
				_, _, err := a.request(strangerAddress(i), "POST", "/hooks/usual", header, nil)
				return err
			})
		},
		"wrong signatures": func(a *attackTest) {
			header := http.Header{"X-Hub-Signature-256": {"sha256=" + strings.Repeat("ab", 32)}}
			a.repeatInWorkers(64, func(i int) error {
				_, _, err := a.request(strangerAddress(i), "POST", "/hooks/usual", header, []byte("{}"))
				return err
			})
		},
		"a repeated delivery": func(a *attackTest) {
			a.repeatInWorkers(16, func(i int) error {
				_, _, err := a.request(strangerAddress(i), "POST", "/hooks/usual", a.good, a.body)
				return err
			})
		},
		"HTTP/2 pings":         func(a *attackTest) { stream(a, nil, []byte("\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678")) },
		"HTTP/2 settings":      func(a *attackTest) { stream(a, nil, []byte("\x00\x00\x00\x04\x00\x00\x00\x00\x00")) },
		"HTTP/2 continuations": func(a *attackTest) { stream(a, requestFrame(1, 0), []byte("\x00\x00\x00\x09\x00\x00\x00\x00\x01")) },
		"HTTP/2 empty data":    func(a *attackTest) { stream(a, requestFrame(1, 4), []byte("\x00\x00\x00\x00\x00\x00\x00\x00\x01")) },
		"HTTP/2 resets": func(a *attackTest) {
			var all []byte
			for id := byte(1); id < 120; id += 2 {
				all = append(all, requestFrame(id, 5)...)
				all = append(all, 0, 0, 4, 3, 0, 0, 0, 0, id, 0, 0, 0, 8)
			}
			stream(a, all, []byte("\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678"))
		},
		"CRLs": (*attackTest).replaceCRL,
		"reads by a caller": func(a *attackTest) {
			a.repeatInWorkers(24, func(i int) error { _, _, err := a.sendAsHostileCaller(i, "GET", "/runs?limit=1000", nil); return err })
		},
		"pages by a caller": func(a *attackTest) {
			note := []byte(`{"note":"` + strings.Repeat("x", 60_000) + `"}`)
			for i := range 60 {
				if status, answer, err := a.sendAsHostileCaller(i, "POST", "/hooks/bad", slices.Concat(note, bytes.Repeat([]byte(" "), i))); err != nil || status >= 300 {
					a.t.Fatalf("%d %s %v", status, answer, err)
				}
			}
			a.repeatInWorkers(12, func(i int) error {
				_, _, err := a.sendAsHostileCaller(i, "GET", "/runs?limit=1000"+strings.Repeat("&hook=bad&hook=usual", 10), nil)
				return err
			})
		},
		"unknown names by a caller": func(a *attackTest) {
			a.repeatInWorkers(12, func(i int) error {
				_, _, err := a.sendAsHostileCaller(i, "GET", "/runs?"+strings.Repeat("hook=bad&", 1500), nil)
				return err
			})
		},
		"deep JSON by a caller": func(a *attackTest) {
			a.repeatInWorkers(8, func(i int) error { _, _, err := a.sendAsHostileCaller(i, "POST", "/hooks/bad", deep); return err })
		},
		"wide JSON by a caller": func(a *attackTest) {
			a.repeatInWorkers(8, func(i int) error { _, _, err := a.sendAsHostileCaller(i, "POST", "/hooks/bad", wide); return err })
		},
	}
}

// phase is what the good caller measured.
type phase struct {
	sent, refused int
	took          []time.Duration
}

func (p *phase) percentile(n int) time.Duration {
	slices.Sort(p.took)
	if len(p.took) == 0 {
		return 0
	}
	return p.took[(len(p.took)-1)*n/100].Round(100 * time.Microsecond)
}

// measureDeliveries sends good deliveries one after the other, for a span of time and at least ten.
func (a *attackTest) measureDeliveries(span time.Duration) (p phase) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(span); p.sent < 10 || time.Now().Before(end); <-tick.C {
		from := time.Now()
		p.sent++
		if err := a.sendGoodDelivery(goodAddress, "/hooks/usual", 20<<10); err != nil {
			a.t.Log(err)
			p.refused++
			continue
		}
		p.took = append(p.took, time.Since(from))
	}
	return p
}

// use returns the resources that the server uses.
type use struct{ kib, descriptors, goroutines int }

func (a *attackTest) measureUse() (u use) {
	a.t.Helper()
	u.kib = readMemory(a.t, a.server, "VmHWM")
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", a.server))
	mustSucceed(a.t, err)
	u.descriptors = len(files)
	_, text, err := a.sendAsHostileCaller(199, "GET", "/metrics", nil)
	if err != nil {
		return u // under attack, this request may be refused like any other
	}
	if found := regexp.MustCompile(`(?m)^go_goroutines (\d+)$`).FindSubmatch(text); found != nil {
		u.goroutines, err = strconv.Atoi(string(found[1]))
		mustSucceed(a.t, err)
	}
	return u
}

// TestAttack sends good deliveries before, during and after each attack: all of them are accepted. It logs one line of
// measurements for each attack, which make attack prints. ATTACKED names another build to compare with.
func TestAttack(t *testing.T) {
	t.Parallel()
	testenv.Long(t)
	span := 200 * time.Millisecond // and at least ten deliveries
	if text, ok := os.LookupEnv("ATTACK"); ok {
		var err error
		span, err = time.ParseDuration(text)
		mustSucceed(t, err)
	}
	program, other := os.LookupEnv("ATTACKED")
	if !other {
		dir := t.TempDir()
		buildShipped(t, dir)
		program = filepath.Join(dir, "sallyport")
	}
	for name, attack := range attacks() {
		t.Run(name, func(t *testing.T) {
			a := newAttackTest(t, program)
			mustSucceed(t, a.sendGoodDelivery(goodAddress, "/hooks/usual", 20<<10))
			if status, answer, err := a.request(goodAddress, "POST", "/hooks/usual", a.good, a.body); err != nil || status != http.StatusOK && status != http.StatusAccepted {
				t.Fatalf("%d %s %v", status, answer, err)
			}
			before, quiet := a.measureDeliveries(0), a.measureUse()
			attack(a)
			during, busy := a.measureDeliveries(span), a.measureUse()
			a.endAttack()
			back := a.awaitRecovery()
			after := a.measureDeliveries(0)
			calm := a.measureUse()
			t.Logf("%s: good before %d/%d, during %d/%d, after %d/%d; p50 %v -> %v, p99 %v -> %v; "+
				"%d -> %d KiB, descriptors %d -> %d -> %d, goroutines %d -> %d -> %d; back after %v", name,
				before.sent-before.refused, before.sent, during.sent-during.refused, during.sent, after.sent-after.refused, after.sent,
				before.percentile(50), during.percentile(50), before.percentile(99), during.percentile(99),
				quiet.kib, busy.kib, quiet.descriptors, busy.descriptors, calm.descriptors, quiet.goroutines, busy.goroutines, calm.goroutines,
				back.Round(time.Millisecond))
			if before.refused+after.refused > 0 || during.refused*100 > during.sent {
				t.Errorf("good deliveries were refused: %d before, %d of %d during, %d after", before.refused, during.refused, during.sent, after.refused)
			}
			if busy.kib > attackMemory {
				t.Errorf("the server took %d KiB, and %d are allowed", busy.kib, attackMemory)
			}
		})
	}
}

// endAttack stops the attack, and waits for its last requests.
func (a *attackTest) endAttack() {
	close(a.stop)
	a.all.Wait()
	a.stop = make(chan struct{}) // the cleanup closes it again
}

// awaitRecovery returns how long it takes until a good delivery is accepted after an attack.
func (a *attackTest) awaitRecovery() time.Duration {
	a.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	from := time.Now()
	for range 3000 {
		if a.sendGoodDelivery(goodAddress, "/hooks/usual", 20<<10) == nil {
			return time.Since(from)
		}
		<-tick.C
	}
	a.t.Fatal("no good delivery is accepted after the attack")
	return 0
}
