package webhook_test

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"sallyport/auth/field"
	"sallyport/auth/webhook"
)

type vector struct {
	expect, scheme, key, body string
	now                       int64
	header                    http.Header
}

func readVector(t *testing.T, path string) vector {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	v := vector{header: http.Header{}}
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch name {
		case "expect":
			v.expect = value
		case "scheme":
			v.scheme = value
		case "key":
			v.key = value
		case "body":
			v.body = value
		case "now":
			if v.now, err = strconv.ParseInt(value, 10, 64); err != nil {
				t.Fatal(err)
			}
		case "header":
			field, text, _ := strings.Cut(value, ": ")
			v.header.Add(field, text)
		default:
			if !strings.HasPrefix(line, "#") {
				t.Fatalf("unknown line %q", line)
			}
		}
	}
	return v
}

// verifyDelivery returns the result of a delivery: accept, or the reason for its refusal.
func verifyDelivery(t testing.TB, s *webhook.Scheme, key string, h http.Header, body string, now time.Time) (string, error) {
	t.Helper()
	k, err := s.ParseKey([]byte(key))
	if err != nil {
		t.Fatal(err)
	}
	sig, err := k.Read(h)
	switch {
	case errors.Is(err, webhook.ErrAbsent):
		return "absent", nil
	case err != nil:
		return "malformed", err
	case !k.Verify(sig, []byte(body)):
		return "wrong", nil
	}
	_, err = k.Describe(sig, h, []byte(body), now)
	stale := field.StaleError("")
	switch {
	case errors.As(err, &stale):
		return "stale", err
	case err != nil:
		return "malformed", err
	}
	return "accept", nil
}

// TestVectors_AsPublished verifies the examples that senders publish, and recordings of their deliveries.
func TestVectors_AsPublished(t *testing.T) {
	paths, err := filepath.Glob("testdata/vectors/*.txt")
	if err != nil || len(paths) < 20 {
		t.Fatalf("found %d vectors, %v", len(paths), err)
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			v := readVector(t, path)
			s, ok := webhook.Preset(v.scheme)
			if !ok {
				t.Fatalf("no preset %s", v.scheme)
			}
			if got, err := verifyDelivery(t, s, v.key, v.header, v.body, time.Unix(v.now, 0)); got != v.expect {
				t.Errorf("got %s (%v), want %s", got, err, v.expect)
			}
		})
	}
}

// TestSign_AsPublished makes the signatures that senders publish.
func TestSign_AsPublished(t *testing.T) {
	for _, name := range []string{"github", "slack", "circleci-1", "circleci-2", "circleci-3", "standard-webhooks", "svix", "gitlab", "stripe"} {
		v := readVector(t, "testdata/vectors/"+name+".txt")
		s, _ := webhook.Preset(v.scheme)
		at := int64(1614265330)
		if v.scheme == "slack" {
			at = 1531420618
		}
		got, err := s.Sign([]byte(v.key), []byte(v.body), "msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(at, 0))
		if err != nil {
			t.Fatal(err)
		}
		for field := range v.header {
			if got.Get(field) != v.header.Get(field) {
				t.Errorf("%s: %s is %q, want %q", name, field, got.Get(field), v.header.Get(field))
			}
		}
	}
}
