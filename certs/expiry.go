package certs

import (
	"cmp"
	"context"
	"crypto/x509"
	"log/slog"
	"slices"
	"time"
)

// Expiry is the end of a certificate, a CRL or a key.
type Expiry struct {
	What     string // "server certificate", "client CA", "CRL", "SVID", "key"
	File     string // as configured; "acme" or "spiffe" for what they issue; for a key, its place in the configuration
	Subject  string
	NotAfter time.Time
	Ahead    time.Duration // time before NotAfter when a warning is due; zero means 14 days
}

func listExpiries(what, file string, list []*x509.Certificate) (all []Expiry) {
	for _, c := range list {
		all = append(all, Expiry{What: what, File: file, Subject: displayName(c), NotAfter: c.NotAfter})
	}
	return all
}

// quarterLifetime returns the time before expiry when a warning is due for what is renewed by itself, and may live for
// days only: renewal was due before.
func quarterLifetime(from, to time.Time) time.Duration { return min(warnAhead, to.Sub(from)/4) }

// displayName returns the usual name of a certificate: many have names only in subjectAltName.
func displayName(c *x509.Certificate) string {
	if len(c.DNSNames) > 0 {
		return c.DNSNames[0]
	}
	if text := c.Subject.String(); text != "" || len(c.IPAddresses) == 0 {
		return text
	}
	return c.IPAddresses[0].String()
}

// Earliest returns each thing once, the first to expire first. Of several certificates with one subject in a file, as
// while a CA changes its key, it returns the first to expire.
func Earliest(all []Expiry) []Expiry {
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b Expiry) int { return a.NotAfter.Compare(b.NotAfter) })
	seen := map[Expiry]bool{}
	return slices.DeleteFunc(all, func(e Expiry) bool {
		e.NotAfter, e.Ahead = time.Time{}, 0
		twice := seen[e]
		seen[e] = true
		return twice
	})
}

// Watch logs once a day what expires soon, and as an error what has expired, until ctx is done. It calls list every
// hour.
func Watch(ctx context.Context, now func() time.Time, list func() []Expiry, log *slog.Logger) {
	type told struct {
		Expiry

		level slog.Level
	}
	last := map[told]time.Time{}
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		at, next := now(), map[told]time.Time{}
		for _, e := range list() {
			left, is := e.NotAfter.Sub(at), told{e, slog.LevelWarn}
			switch {
			case left < 0:
				is.level = slog.LevelError
			case left >= cmp.Or(e.Ahead, warnAhead):
				continue
			}
			if next[is] = last[is]; at.Sub(next[is]) >= day {
				next[is] = at
				about := log.With("what", e.What, "file", e.File, "subject", e.Subject, "not_after", e.NotAfter.UTC())
				if is.level == slog.LevelError {
					about.ErrorContext(ctx, "expired")
				} else {
					about.WarnContext(ctx, "expires soon")
				}
			}
		}
		last = next
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
