// Package cli is what the program does for whoever sends deliveries, asks for runs
// and looks after keys: the commands that serve nothing.
package cli

import (
	"fmt"
	"io"
)

// Streams are what a command reads and writes.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// ExitCode ends the program without another word.
type ExitCode int

func (c ExitCode) Error() string { return fmt.Sprint("exit code ", int(c)) }
