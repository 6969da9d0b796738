// Package cli has the client commands, which do not serve: they send deliveries, query runs and manage keys.
package cli

import (
	"fmt"
	"io"
)

// Streams are the input and the outputs of a command.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// ExitCode ends the program with this code and without a message.
type ExitCode int

func (c ExitCode) Error() string { return fmt.Sprint("exit code ", int(c)) }
