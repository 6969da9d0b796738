package readiness

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Watchdog keeps systemd from restarting this process (WatchdogSec=) while all parts of a check answer. An error is an
// answer, too: a restart ends a hang, but does not help with a full disk, for example.
type Watchdog struct{ check atomic.Pointer[Check] }

// Watch sets the check: from now on, its parts must answer. The check is nil while the parts are not open.
func (w *Watchdog) Watch(c *Check) { w.check.Store(c) }

// Run notifies systemd until ctx is done, if the unit of the service sets WatchdogSec=.
func (w *Watchdog) Run(ctx context.Context, log *slog.Logger) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("systemd watchdog not notified", "error", err)
	}
	if err != nil || interval <= 0 {
		return
	}
	tick := time.NewTicker(interval / 2)
	defer tick.Stop()
	failing := false
	for {
		err := w.notify(ctx)
		if err != nil && !failing {
			log.Error("systemd watchdog not notified", "error", err)
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (w *Watchdog) notify(ctx context.Context) error {
	var silent []error
	if c := w.check.Load(); c != nil {
		for _, f := range c.Faults(ctx) {
			if errors.Is(f.Err, ErrSilent) {
				silent = append(silent, fmt.Errorf("%s: %w", f.Part, f.Err))
			}
		}
	}
	if len(silent) > 0 {
		return errors.Join(silent...)
	}
	_, err := daemon.SdNotify(false, daemon.SdNotifyWatchdog)
	return err
}
