package rundir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// mountsIn returns the mount points at name and below it, as this process sees them (proc_pid_mountinfo(5)). A
// comparison of device numbers would miss some: a bind mount may show a folder of the same filesystem.
func mountsIn(root *os.Root, name string) ([]string, error) {
	d, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	// The path where the folder is now, which may differ from the path at which it was opened.
	dir, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", d.Fd()))
	if err := errors.Join(err, d.Close()); err != nil {
		return nil, err
	}
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	const pointField = 4 // counted from 0
	var points []string
	for line := range strings.Lines(string(text)) {
		if fields := strings.Split(line, " "); len(fields) > pointField {
			points = append(points, unescapePath(fields[pointField]))
		}
	}
	return pointsUnder(filepath.Join(dir, name), points), nil
}

// unescapePath undoes the escapes of the kernel for white space, # and backslashes: three octal digits.
func unescapePath(s string) string {
	const digits = 3
	var b strings.Builder
	for {
		plain, rest, found := strings.Cut(s, `\`)
		b.WriteString(plain)
		if !found {
			return b.String()
		}
		if s = rest; len(rest) < digits {
			b.WriteByte('\\')
			continue
		}
		c, err := strconv.ParseUint(rest[:digits], 8, 8)
		if err != nil {
			b.WriteByte('\\')
			continue
		}
		b.WriteByte(byte(c))
		s = rest[digits:]
	}
}
