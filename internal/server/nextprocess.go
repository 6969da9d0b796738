package server

import (
	"fmt"
	"os"
)

// NextProcess is a server that was started by this process and outlives it.
type NextProcess struct {
	*os.Process

	Ended <-chan struct{} // closed when the process has ended and released everything
}

// StartNextProcess starts the program again, while this process runs on, with files as its
// descriptors from 3 on. It outlives this process.
func StartNextProcess(exe string, args, env []string, files ...*os.File) (*NextProcess, error) {
	p, err := os.StartProcess(exe, append([]string{exe}, args...), &os.ProcAttr{
		Env: env, Files: append([]*os.File{os.Stdin, os.Stdout, os.Stderr}, files...),
	})
	if err != nil {
		return nil, fmt.Errorf("starting the next server: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		_, _ = p.Wait() // how it ended is in its log
		close(ended)
	}()
	return &NextProcess{p, ended}, nil
}
