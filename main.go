// Command sallyport is a secured webhook receiver. It authenticates each request, and starts one allow-listed command
// for it, one run at a time.
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
