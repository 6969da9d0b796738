package certs

import "time"

// WaitFor sets how long a start waits for a certificate.
func (w *Workloads) WaitFor(d time.Duration) { w.wait = d }

// PauseFor sets the pause before an ended watch begins again.
func (w *Workloads) PauseFor(d time.Duration) { w.pause = d }

// Open returns the sockets that are connected.
func (w *Workloads) Open() (sockets []string) {
	for name := range w.open {
		sockets = append(sockets, name)
	}
	return sockets
}

// Renewing returns the renewal of a domain, and reports whether it is still in progress.
func (a *ACME) Renewing(domain string) (renewal any, goesOn bool) {
	r := a.renewals[domain]
	return r, r.ctx.Err() == nil
}
