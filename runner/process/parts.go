package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// The output of a run is a file "output" with its beginning, and once that has
// reached its bound, files "output.N": what the command wrote from offset N on. A
// part is only ever appended to, and removed as a whole when the tail no longer
// needs it. So the parts alone say how much was written and what is missing,
// whoever reads them and however the supervisor ended.

const partPrefix = outputFile + "."

// part is a file of an output.
type part struct {
	name        string
	start, size int64 // start is an offset in all that the command wrote
}

func (p part) end() int64 { return p.start + p.size }

func partName(start int64) string { return partPrefix + strconv.FormatInt(start, 10) }

// parsePart returns the part that a file's name stands for.
func parsePart(name string) (part, bool) {
	if name == outputFile {
		return part{name: name}, true
	}
	offset, ok := strings.CutPrefix(name, partPrefix)
	start, err := strconv.ParseInt(offset, 10, 64)
	return part{name: name, start: start}, ok && err == nil && start >= 0 && partName(start) == name
}

// listParts returns the parts of a run's output in the order of their offsets.
func listParts(root *os.Root, run string) ([]part, error) {
	for {
		parts, err := readParts(root, run)
		if err != nil {
			return nil, fmt.Errorf("listing the output of a run: %w", err)
		}
		last := len(parts) - 1
		for i := range parts {
			info, err := root.Lstat(filepath.Join(run, parts[i].name))
			switch {
			case errors.Is(err, fs.ErrNotExist):
				parts[i].start = -1
			case err != nil:
				return nil, fmt.Errorf("listing the output of a run: %w", err)
			case !info.Mode().IsRegular():
				return nil, fmt.Errorf("listing the output of a run: %s is not a regular file", parts[i].name)
			default:
				parts[i].size = info.Size()
			}
		}
		if last > 0 && parts[last].start < 0 {
			continue // the command has written a whole tail meanwhile
		}
		return slices.DeleteFunc(parts, func(p part) bool { return p.start < 0 }), nil
	}
}

// readParts returns the parts without their sizes.
func readParts(root *os.Root, run string) (parts []part, err error) {
	dir, err := root.Open(run)
	if err != nil {
		return nil, err
	}
	names, err := dir.Readdirnames(-1)
	if err := errors.Join(err, dir.Close()); err != nil {
		return nil, err
	}
	for _, name := range names {
		if p, ok := parsePart(name); ok {
			parts = append(parts, p)
		}
	}
	slices.SortFunc(parts, func(a, b part) int {
		if a.start != b.start {
			return int(min(max(a.start-b.start, -1), 1))
		}
		return strings.Compare(a.name, b.name)
	})
	return parts, nil
}

// missing returns what the parts do not have of an output of size bytes, of which
// the last tail bytes are kept. What they have beyond that is not shown, so that
// readers see the same during the run and afterwards.
func missing(parts []part, size, tail int64) Dropped {
	head, reach := int64(0), size // there is what comes before head, and from reach on
	if len(parts) > 0 && parts[0].start == 0 {
		head = parts[0].size
	}
	for _, p := range slices.Backward(parts) {
		if p.end() != reach {
			break
		}
		reach = p.start
	}
	d := Dropped{From: head, To: max(reach, size-tail)}
	if d.To <= d.From {
		return Dropped{}
	}
	return d
}
