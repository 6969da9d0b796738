package audit

import (
	"log/slog"
	"sync/atomic"
	"time"
)

// health knows whether lines can be written.
type health struct {
	dir   string
	now   func() time.Time
	log   *slog.Logger
	fault atomic.Pointer[error] // why nothing can be written, or nil
	since time.Time             // of the fault; else zero. Only for the goroutine that writes
}

// recordResult takes the result of a write. It logs once that nothing can be written, and once that it can be again.
func (h *health) recordResult(err error) {
	switch {
	case err != nil && h.since.IsZero():
		h.since = h.now()
		h.log.Error("audit unavailable", "folder", h.dir, "error", err)
	case err == nil && !h.since.IsZero():
		h.since = time.Time{}
		h.log.Info("audit available again", "folder", h.dir)
	}
	if err == nil {
		h.fault.Store(nil)
	} else {
		h.fault.Store(&err)
	}
}

// currentError returns why lines cannot be written now, or nil.
func (h *health) currentError() error {
	if err := h.fault.Load(); err != nil {
		return *err
	}
	return nil
}
