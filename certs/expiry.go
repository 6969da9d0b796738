package certs

import (
	"cmp"
	"context"
	"crypto/x509"
	"log/slog"
	"slices"
	"time"
)

// Expiry tells when something that TLS is made of ends, or a key.
type Expiry struct {
	What     string // "server certificate", "client CA", "CRL", "SVID", "key"
	File     string // as the configuration has it; "acme" or "spiffe" for what comes from there; of a key, where it stands
	Subject  string
	NotAfter time.Time
	Ahead    time.Duration // a warning is due so long before; 14 days when zero
}

func expiries(what, file string, list []*x509.Certificate) (all []Expiry) {
	for _, c := range list {
		all = append(all, Expiry{What: what, File: file, Subject: subject(c), NotAfter: c.NotAfter})
	}
	return all
}

// quarter is how long before the end a warning is due of what is renewed by
// itself, and may live for days only: renewal was due before, then.
func quarter(from, to time.Time) time.Duration { return min(warnAhead, to.Sub(from)/4) }

// subject is what people call a certificate: many have a name nowhere but in
// subjectAltName.
func subject(c *x509.Certificate) string {
	if len(c.DNSNames) > 0 {
		return c.DNSNames[0]
	}
	if text := c.Subject.String(); text != "" || len(c.IPAddresses) == 0 {
		return text
	}
	return c.IPAddresses[0].String()
}

// Earliest returns each thing once, ordered by what ends first. A file may have
// several certificates of one subject, as while a CA changes its key; then the
// first to end stands for them.
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

// Watch warns of what ends soon, once a day, until ctx is done. What has ended is
// an error. list is asked every hour.
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
