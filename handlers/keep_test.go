package handlers_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// keeping serves a hook, and keeps deliveries.
func keeping(t *testing.T) (h *house, folder string) {
	t.Helper()
	dir := t.TempDir()
	h = build(t, dir, `
listen: "localhost:0"
state: state
keep_deliveries: 1h
tls: {cert: certs/server.pem, key: certs/server.key}
limits: {failures: {rate: 1000/s, burst: 1000}}
callers:
  good: {hmac: {scheme: github, keys: [{file: good}]}, limit: {rate: 1000/s, burst: 1000}}
hooks:
  start: {callers: [good], command: [/bin/true], flight: "{x}", params: {x: {from: body.x, enum: [a, b, c]}}}
`)
	return h, filepath.Join(dir, "state", "deliveries")
}

// TestKeep_FewOfStrangers: a flood without a valid credential writes few files, and those of a caller are all kept.
func TestKeep_FewOfStrangers(t *testing.T) {
	t.Parallel()
	h, folder := keeping(t)
	forged := h.signed("good", "x", "forged")
	forged.body = "changed"
	forged.path = "/hooks/start"
	begun := time.Now()
	for range 60 {
		h.answers(http.StatusUnauthorized, forged)
	}
	for _, body := range []string{"a", "b", "c"} {
		d := h.signed("good", body, `{"x":"`+body+`"}`)
		d.path = "/hooks/start"
		h.answers(http.StatusOK, d)
	}
	paced := 11 + int(time.Since(begun)/time.Second)
	for name, most := range map[string]int{"unverified": paced, "verified": 3} {
		files, err := os.ReadDir(filepath.Join(folder, name))
		if err != nil || len(files) < 3 || len(files) > most {
			t.Errorf("%s: %d files, want 3 to %d: %v", name, len(files), most, err)
		}
	}
}

// TestKeep_FolderCannotBeWritten: a delivery that cannot be kept is handled like any other, and the log says so once.
func TestKeep_FolderCannotBeWritten(t *testing.T) {
	t.Parallel()
	h, folder := keeping(t)
	if err := os.WriteFile(folder, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, body := range []string{"a", "b"} {
		d := h.signed("good", body, `{"x":"`+body+`"}`)
		d.path = "/hooks/start"
		h.answers(http.StatusOK, d)
	}
	if n := strings.Count(h.log.String(), `"msg":"a delivery cannot be kept to be explained"`); n != 1 {
		t.Errorf("%d lines about the failure, want 1", n)
	}
}
