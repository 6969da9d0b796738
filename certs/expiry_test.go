package certs_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/certs"
	"sallyport/internal/diag"
)

const day = 24 * time.Hour

// TestWatch_OncePerDay: Watch warns once a day, from fourteen days before the end.
func TestWatch_OncePerDay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		var log bytes.Buffer
		list := []certs.Expiry{
			{What: "server certificate", File: "late.pem", NotAfter: start.Add(1000 * day)},
			{What: "server certificate", File: "short.pem", NotAfter: start.Add(41 * day), Ahead: 2 * time.Hour},
			{What: "server certificate", File: "soon.pem", Subject: "hooks.example.com", NotAfter: start.Add(15*day + 12*time.Hour)},
		}
		now := func() []certs.Expiry {
			if time.Since(start) > 20*day {
				return list[:2] // it was replaced
			}
			return list
		}
		go certs.Watch(ctx, time.Now, now, slog.New(slog.NewJSONHandler(&log, nil)))
		time.Sleep(40 * day) //nolint:forbidigo // it takes no time in here
		cancel()
		synctest.Wait()

		type line struct {
			Time                            time.Time
			Level, Msg, What, File, Subject string
		}
		var levels []string
		dec := json.NewDecoder(&log)
		at := start.Add(37 * time.Hour) // the first hour within 14 days
		for ; dec.More(); at = at.Add(day) {
			var l line
			must(t, dec.Decode(&l))
			levels = append(levels, l.Level)
			msg := map[string]string{"WARN": "expires soon", "ERROR": "expired"}[l.Level]
			if l.Time = l.Time.UTC(); l != (line{at.Round(0).UTC(), l.Level, msg, "server certificate", "soon.pem", "hooks.example.com"}) {
				t.Errorf("line %d is %+v, at %s", len(levels), l, at)
			}
		}
		want := slices.Concat(slices.Repeat([]string{"WARN"}, 14), slices.Repeat([]string{"ERROR"}, 5))
		if !slices.Equal(levels, want) {
			t.Errorf("levels %q, want %q", levels, want)
		}
	})
}

// TestEarliest_SameSubject: the first certificate to expire stands for all of its subject.
func TestEarliest_SameSubject(t *testing.T) {
	now := time.Now()
	e := func(file, subject string, days int) certs.Expiry {
		return certs.Expiry{What: "client CA", File: file, Subject: subject, NotAfter: now.Add(time.Duration(days) * day)}
	}
	list := []certs.Expiry{e("a", "CN=1", 9), e("a", "CN=1", 3), e("b", "CN=1", 5), e("a", "CN=2", 1), e("a", "CN=1", 3)}
	want := []certs.Expiry{e("a", "CN=2", 1), e("a", "CN=1", 3), e("b", "CN=1", 5)}
	if got := certs.Earliest(list); !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	if list[0] != e("a", "CN=1", 9) {
		t.Error("the list was changed")
	}
}

// TestExpiries_Loaded: the expiry of each loaded certificate is returned.
func TestExpiries_Loaded(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	c := writeValidFiles(t, dir, now)
	leaf := c.issue(t, nil)
	write(t, dir, "s.pem", leaf.cert+c.pem, 0o644)
	write(t, dir, "s.key", leaf.key, 0o600)
	_, ends := certs.Load(fullSpec(), dir, now, new(diag.List))
	ends = append(ends, certs.LoadClients(fullSpec(), certs.Named{}, dir, now, nil, new(diag.List)).Expiries()...)
	first := parseOne(t, leaf.cert)
	want := []certs.Expiry{
		{What: "server certificate", File: "s.pem", Subject: "hooks.example.com", NotAfter: first.NotAfter},
		{What: "server certificate", File: "s.pem", Subject: "CN=Corp CA", NotAfter: c.cert.NotAfter},
		{What: "client CA", File: "c.pem", Subject: "CN=Corp CA", NotAfter: c.cert.NotAfter},
	}
	if !slices.Equal(ends, want) {
		t.Errorf("got %v\nwant %v", ends, want)
	}
}
