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

// StartNextProcess starts the program again, with files as descriptors from 3 on. Both processes run, and the new one
// outlives this one.
func StartNextProcess(exe string, args, env []string, files ...*os.File) (*NextProcess, error) {
	p, err := os.StartProcess(exe, append([]string{exe}, args...), &os.ProcAttr{
		Env: env, Files: append([]*os.File{os.Stdin, os.Stdout, os.Stderr}, files...),
	})
	if err != nil {
		return nil, fmt.Errorf("starting the next server: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		_, _ = p.Wait() // the new process logs how it ends
		close(ended)
	}()
	return &NextProcess{p, ended}, nil
}
