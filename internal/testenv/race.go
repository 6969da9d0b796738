//go:build race

package testenv

import (
	"os"
	"strings"
	"syscall"
)

// EndProcessesAtOnce is for TestMain of tests that start their own program. A program with the race detector waits a
// second before it ends, for races that goroutines may still report. EndProcessesAtOnce runs this process again
// without that second, which most of these tests would spend many times; races that were found by then are reported
// all the same.
func EndProcessesAtOnce() {
	const option = "atexit_sleep_ms=0"
	options := os.Getenv("GORACE") //nolint:forbidigo // of the tests, which have no main
	if strings.Contains(options, option) {
		return
	}
	program, err := os.Executable()
	if err != nil {
		return // the tests only take longer
	}
	env := append(os.Environ(), "GORACE="+strings.TrimSpace(options+" "+option))
	// If it fails, the tests only take longer.
	_ = syscall.Exec(program, os.Args, env) //nolint:forbidigo,gosec // G204: this program itself
}
