package certs

import "time"

// WaitFor has a start wait for so long, and no longer.
func (w *Workloads) WaitFor(d time.Duration) { w.wait = d }

// PauseFor is how long a watch that was ended rests.
func (w *Workloads) PauseFor(d time.Duration) { w.pause = d }

// Open returns the sockets that are connected.
func (w *Workloads) Open() (sockets []string) {
	for name := range w.open {
		sockets = append(sockets, name)
	}
	return sockets
}

// Renewing tells what gets the certificate of a domain, and whether that goes on.
func (a *ACME) Renewing(domain string) (renewal any, goesOn bool) {
	r := a.renewals[domain]
	return r, r.ctx.Err() == nil
}
