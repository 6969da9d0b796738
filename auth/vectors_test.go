package auth_test

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"sallyport/auth"
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

func TestPublishedVectorsAreJudgedAsTheirSendersSay(t *testing.T) {
	paths, err := filepath.Glob("testdata/vectors/*.txt")
	if err != nil || len(paths) < 20 {
		t.Fatalf("found %d vectors, %v", len(paths), err)
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			v := readVector(t, path)
			s, ok := auth.Preset(v.scheme)
			if !ok {
				t.Fatalf("no preset %s", v.scheme)
			}
			_, err := s.Verify(v.key, &auth.Delivery{Header: v.header, Body: []byte(v.body), Now: time.Unix(v.now, 0)})
			got := "accept"
			var r *auth.Refusal
			if errors.As(err, &r) {
				got = string(r.Reason)
			} else if errors.Is(err, auth.ErrAbsent) {
				got = "absent"
			} else if err != nil {
				got = err.Error()
			}
			if got != v.expect {
				t.Errorf("got %s (%v), want %s", got, err, v.expect)
			}
		})
	}
}

func TestSignMakesThePublishedSignature(t *testing.T) {
	for _, name := range []string{"github", "slack", "circleci-1", "circleci-2", "circleci-3", "standard-webhooks", "svix", "gitlab", "stripe"} {
		v := readVector(t, "testdata/vectors/"+name+".txt")
		s, _ := auth.Preset(v.scheme)
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
