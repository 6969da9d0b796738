package e2e_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// BenchmarkRefusals measures how long a 401 takes for each reason, with bodies of several sizes, as an outsider can.
// The reasons alternate in random order on each connection. In addition to the medians it reports the difference of two
// reasons as the z of a Mann-Whitney test: beyond about 4, an outsider with as many requests can distinguish them.
func BenchmarkRefusals(b *testing.B) {
	dir := b.TempDir()
	config := `listen: "localhost:0"
state: state
tls: {cert: certs/server.pem, key: certs/server.key}
limits: {address: {rate: 1000000/s, burst: 1000000}, failures: {rate: 1000000/s, burst: 1000000}}
callers:
  github: {hmac: {scheme: github, keys: [{file: key}]}}
  ci: {jwt: {issuer: https://ci.example, audience: https://hooks.example.com, keys: [{file: key}]}}
hooks:
  start: {path: /start, callers: [github, ci], command: [/bin/true]}
`
	for name, text := range map[string]string{"sallyport.yaml": config, "key": "a secret of github, longer than 32 bytes"} {
		mustSucceed(b, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	if out, err := program(b, dir, "certs", "dev").CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	url := startListening(b, dir, program(b, dir, "serve", "--config", "sallyport.yaml"))
	trusted := roots(b, filepath.Join(dir, "certs", "ca.pem"))
	for _, size := range []int{100, 64 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dB", size), func(b *testing.B) {
			reasons := map[string]string{
				"wrong":   "X-Hub-Signature-256: sha256=" + strings.Repeat("0", 64) + "\r\n",
				"unknown": "X-Signature-Of-Nobody: sha256=" + strings.Repeat("0", 64) + "\r\n",
				"missing": "",
				"token":   "Authorization: Bearer e30.e30.AAAA\r\n",
			}
			took := map[string][]float64{}
			body := strings.Repeat("x", size)
			for b.Loop() {
				// One connection for each round: the server closes a connection after many refusals.
				conn, err := (&tls.Dialer{Config: &tls.Config{RootCAs: trusted, ServerName: "localhost"}}).DialContext(b.Context(), "tcp", strings.TrimPrefix(url, "https://"))
				mustSucceed(b, err)
				in := bufio.NewReader(conn)
				names := []string{"wrong", "unknown", "missing", "token"}
				rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
				for _, name := range names {
					request := fmt.Sprintf("POST /start HTTP/1.1\r\nHost: localhost\r\n%sContent-Length: %d\r\n\r\n%s", reasons[name], size, body)
					start := time.Now()
					_, err := io.WriteString(conn, request)
					mustSucceed(b, err)
					res, err := http.ReadResponse(in, nil)
					mustSucceed(b, err)
					took[name] = append(took[name], float64(time.Since(start))/float64(time.Microsecond))
					_, _ = io.Copy(io.Discard, res.Body)
					_ = res.Body.Close()
					if res.StatusCode != http.StatusUnauthorized {
						b.Fatalf("%s: status %d", name, res.StatusCode)
					}
				}
				_ = conn.Close()
			}
			b.ReportMetric(0, "ns/op")
			for name, times := range took {
				b.ReportMetric(median(times), name+"-µs")
				if name != "missing" {
					b.ReportMetric(mannWhitney(times, took["missing"]), name+"-z")
				}
			}
		})
	}
}

func median(times []float64) float64 {
	sorted := slices.Sorted(slices.Values(times))
	return sorted[len(sorted)/2]
}

// mannWhitney returns the z of the rank sum test: how many standard deviations the ranks of a differ from their mean if
// a and b have one distribution.
func mannWhitney(a, b []float64) float64 {
	type sample struct {
		at  float64
		ofA bool
	}
	var all []sample
	for _, x := range a {
		all = append(all, sample{x, true})
	}
	for _, x := range b {
		all = append(all, sample{x, false})
	}
	slices.SortFunc(all, func(x, y sample) int {
		switch {
		case x.at < y.at:
			return -1
		case x.at > y.at:
			return 1
		}
		return 0
	})
	ranks := 0.0
	for i, x := range all {
		if x.ofA {
			ranks += float64(i + 1)
		}
	}
	n, m := float64(len(a)), float64(len(b))
	u := ranks - n*(n+1)/2
	return (u - n*m/2) / math.Sqrt(n*m*(n+m+1)/12)
}
