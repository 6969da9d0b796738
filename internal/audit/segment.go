package audit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"sallyport/internal/pathsafe"
)

// Files in the folder of a chain, apart from the segments and the lock.
const (
	checkpointFile = "checkpoint"
	verifierFile   = "verifier"

	keyFile = "audit.key" // in the state folder, unless the configuration names another
)

func chainFolder(state string) string { return filepath.Join(state, "audit") }

// refusalsFolder returns the folder of the chain of refusals.
func refusalsFolder(state string) string { return filepath.Join(chainFolder(state), "refusals") }

// segment is a file of lines. It is named by the seq of its first line.
type segment struct {
	name  string
	first uint64 // zero if the name does not have it
	size  int64
}

func segmentName(dir string, first uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%020d.jsonl", first))
}

// listSegments returns the segments of a folder, the oldest first.
func listSegments(dir string) ([]segment, error) {
	entries, err := os.ReadDir(dir) // sorted
	if err != nil {
		return nil, err
	}
	form := regexp.MustCompile(`^([0-9]{20})\.jsonl$`)
	var segments []segment
	for _, e := range entries {
		m := form.FindStringSubmatch(e.Name())
		if m == nil {
			continue
		}
		first, err := strconv.ParseUint(m[1], 10, 64)
		if err != nil {
			continue // the number is larger than that of any line
		}
		info, err := e.Info()
		if errors.Is(err, os.ErrNotExist) { // removed just now
			continue
		}
		if err != nil {
			return nil, err
		}
		segments = append(segments, segment{filepath.Join(dir, e.Name()), first, info.Size()})
	}
	return segments, nil
}

// firstLineTime returns when the first line of a segment was written, or zero for an empty segment.
func firstLineTime(s segment) (at time.Time, err error) {
	f, err := os.Open(s.name)
	if err != nil {
		return time.Time{}, err
	}
	defer f.Close() //nolint:errcheck // only read
	first := errors.New("the first line is there")
	err = scanLines(f, func(b []byte) error {
		l, ok := parseLink(b)
		if !ok {
			return fmt.Errorf("%s: %w", s.name, ErrDamaged)
		}
		at = l.at
		return first
	})
	switch {
	case errors.Is(err, first):
		return at, nil
	case err == nil:
		return time.Time{}, nil
	}
	return time.Time{}, err
}

// lockChainFolder makes the folder, and locks it against another writer.
func lockChainFolder(dir string) (*pathsafe.Lock, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	lock, err := pathsafe.LockFolder(dir)
	if errors.Is(err, pathsafe.ErrLocked) {
		err = ErrHeld
	}
	return lock, err
}
