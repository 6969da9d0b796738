package app

import (
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"sallyport/internal/server"
	"sallyport/runner/process/proctree"
	"sallyport/runner/supervisor"
)

// protectProcess keeps the server and the supervisor from what may end them, or be
// read of them. It comes before there is any secret.
func protectProcess() error {
	syscall.Umask(0o077) // what they write is for their user alone
	// A log whose reader is gone must not end the server past its drain, nor a
	// terminal that closes. Caught, not ignored: commands would inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	proctree.MakeThreads(proctree.SpareThreads)
	return supervisor.HideMemory()
}

// catchSignals returns where SIGHUP comes, and logs when this process goes on after it
// was stopped, which any process of the same user can do to it.
func catchSignals(log *slog.Logger) (hup <-chan os.Signal) {
	hangups, continued := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	signal.Notify(continued, syscall.SIGCONT)
	go func() {
		for range continued {
			log.Warn("the server was continued: while a process is stopped, it answers nothing")
		}
	}()
	return hangups
}

// catchEndSignals returns what ends serving: SIGTERM or SIGINT drains, a second one kills what still runs, and SIGUSR2
// hands over.
func catchEndSignals() server.Signals {
	first, second, next := make(chan struct{}), make(chan struct{}), make(chan struct{}, 1)
	got, usr := make(chan os.Signal, 2), make(chan os.Signal, 1)
	signal.Notify(got, syscall.SIGTERM, syscall.SIGINT)
	signal.Notify(usr, syscall.SIGUSR2)
	go func() {
		<-got
		close(first)
		<-got
		close(second)
	}()
	go func() {
		for range usr {
			next <- struct{}{}
		}
	}()
	return server.Signals{Stop: first, Kill: second, HandOver: next}
}
