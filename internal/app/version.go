package app

import (
	"crypto/fips140"
	"fmt"
	"runtime/debug"

	"sallyport/internal/cli"
)

type versionCmd struct{}

// Run prints the version of the program and of Go, and whether the cryptography is in FIPS 140-3 mode.
func (*versionCmd) Run(s *cli.Streams, version buildVersion) error {
	mode := ""
	if fips140.Enabled() {
		mode = ", FIPS 140-3 mode, module " + fips140.Version()
	}
	_, err := fmt.Fprintf(s.Out, "sallyport %s%s\n", version, mode)
	return err
}

// buildVersion is set by the build. It is empty in a build that does not set it.
type buildVersion string

// String returns the version of the program and of Go, so that two builds can be distinguished.
func (v buildVersion) String() string {
	info, ok := debug.ReadBuildInfo()
	switch {
	case v != "" && ok:
		return string(v) + " " + info.GoVersion
	case ok:
		return info.Main.Version + " " + info.GoVersion
	}
	return string(v)
}
