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

// Watchdog keeps systemd from restarting this process (WatchdogSec=) for as long as all parts of
// a check answer. What a part answers does not count: a restart ends a hang, and makes no room on
// a full disk.
type Watchdog struct{ check atomic.Pointer[Check] }

// Watch sets what has to answer from now on; nil for nothing, while the parts are not there.
func (w *Watchdog) Watch(c *Check) { w.check.Store(c) }

// Run notifies systemd until ctx is done, if systemd wants that.
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
