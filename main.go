// Command sallyport is a secured webhook receiver: it checks who sends a
// request and starts one allow-listed command, one run at a time.
package main

import (
	"os"

	"sallyport/internal/app"
)

// version is set by the build.
var version string

func main() {
	os.Exit(app.Main(version, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
