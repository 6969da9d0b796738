package handlers

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// newTicks returns a function that waits for the next tick, and one that stops the ticks. The ticks are those of the
// clock of the machine. A time.Ticker is not sufficient: the runtime waits for its timers in whole milliseconds, from
// the moment at which it becomes idle, so the time at which a timer fires reveals how long the work before it took.
func newTicks(every time.Duration) (next, stop func()) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return newTicker(every)
	}
	f := os.NewFile(uintptr(fd), "timer") // read through the poller, which the timer wakes
	step := unix.NsecToTimespec(int64(every))
	var now unix.Timespec
	err = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	if err == nil {
		first := unix.NsecToTimespec((now.Nano()/int64(every) + 1) * int64(every))
		err = unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME, &unix.ItimerSpec{Interval: step, Value: first}, nil)
	}
	if err != nil {
		_ = f.Close() // nothing was written
		return newTicker(every)
	}
	var count [8]byte
	next = func() {
		if _, err := f.Read(count[:]); err != nil { // must not happen; the pause avoids a busy loop
			<-time.After(every)
		}
	}
	return next, func() { _ = f.Close() }
}
