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

// protectProcess protects the server and the supervisor from signals that would end them, and hides their memory from
// other processes. It is called before the process holds any secret.
func protectProcess() error {
	syscall.Umask(0o077) // only their user can access the files that they create
	// Without a handler, SIGPIPE would end the server without a drain when the reader of its log ends or its terminal
	// closes. The signal is handled and not ignored, because commands would inherit an ignored signal.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	proctree.MakeThreads(proctree.SpareThreads)
	return supervisor.HideMemory()
}

// catchSignals returns the channel that receives SIGHUP. It logs when this process continues after a stop, because any
// process of the same user can stop it.
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

// catchEndSignals returns the signals that end serving: SIGTERM or SIGINT drains, a second one kills the commands that
// still run, and SIGUSR2 hands over.
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
