package audit

import (
	"errors"
	"os"
	"sync/atomic"

	"sallyport/internal/pathsafe"
)

// bounds say how much of a chain is kept.
type bounds struct {
	keep     atomic.Int64 // bytes that all lines together may take
	leastAge atomic.Int64 // nanoseconds that a line is kept, however many bytes there are
}

// segmentSize is the size at which another segment is started.
func (b *bounds) segmentSize() int64 { return min(maxSegment, b.keep.Load()/minSegments) }

// segmentFile is the segment that lines are written to.
type segmentFile struct {
	file  *os.File
	pin   pathsafe.Pin
	size  int64 // up to the end of its last good line
	spilt bool  // the file may have more bytes than that
}

// openFile switches to another file.
func (s *segmentFile) openFile(name string, flags int) error {
	f, err := os.OpenFile(name, flags, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	err = s.closeFile()
	*s = segmentFile{file: f, pin: pathsafe.NewPin(name, info), spilt: info.Size() > 0}
	return err
}

// createSegment switches to a new segment of a folder.
func (s *segmentFile) createSegment(dir string, first uint64) error {
	if err := s.openFile(segmentName(dir, first), os.O_RDWR|os.O_CREATE); err != nil {
		return err
	}
	return pathsafe.SyncFolder(dir)
}

// appendBytes appends all of b, or nothing.
func (s *segmentFile) appendBytes(b []byte, durable bool) error {
	if s.spilt {
		if err := s.file.Truncate(s.size); err != nil {
			return err
		}
		s.spilt = false
	}
	_, err := s.file.WriteAt(b, s.size)
	if err == nil && durable {
		err = s.file.Sync()
	}
	if err == nil {
		err = s.pin.Check()
	}
	if err != nil {
		s.spilt = s.file.Truncate(s.size) != nil
		return err
	}
	s.size += int64(len(b))
	return nil
}

func (s *segmentFile) syncFile() error { return s.file.Sync() }

// closeFile closes the file, once.
func (s *segmentFile) closeFile() error {
	f := s.file
	if f == nil {
		return nil
	}
	s.file = nil
	return f.Close()
}
