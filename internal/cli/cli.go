// Package cli has the commands that do not serve: they send deliveries ([Call], [Sign]), query and change runs
// ([Runs]), list and pause hooks ([Hooks]), make keys and certificates ([Keys], [Certs]), verify the audit log
// ([Audit]), copy the state folder ([Backup]) and make a configuration from a file of another program ([Import]).
//
// Each command is a struct with its flags, for kong, and a Run method. Results go to the standard output of [Streams],
// and everything for the person to its standard error. Text from a server is escaped if the output is a terminal. An
// [ExitCode] ends the program with the exit code of a run; other errors have theirs by package client. A secret is
// printed only by "keys new --out -".
package cli

import (
	"fmt"
	"io"
)

// Streams are the input and the outputs of a command, and its environment.
type Streams struct {
	In        io.Reader
	Out, Err  io.Writer
	LookupEnv func(name string) (value string, ok bool)
}

// ExitCode ends the program with this code and without a message.
type ExitCode int

func (c ExitCode) Error() string { return fmt.Sprint("exit code ", int(c)) }
