package app

import (
	"crypto/fips140"
	"fmt"
	"runtime/debug"

	"sallyport/internal/cli"
)

type versionCmd struct{}

// Run prints the version of the program and of what it was built with, and
// whether its cryptography is in FIPS 140-3 mode.
func (*versionCmd) Run(s *cli.Streams, version buildVersion) error {
	mode := ""
	if fips140.Enabled() {
		mode = ", FIPS 140-3 mode, module " + fips140.Version()
	}
	_, err := fmt.Fprintf(s.Out, "sallyport %s%s\n", version, mode)
	return err
}

// buildVersion is set by the build, and empty without.
type buildVersion string

// String tells one build of the program from another.
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
