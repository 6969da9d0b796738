package audit

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"time"

	"sallyport/internal/pathsafe"
)

// checkpoints signs the lines of a chain: each second in the file checkpoint, which is replaced, and each minute among
// the lines.
type checkpoints struct {
	book

	dir    string
	sign   *signer
	now    func() time.Time
	log    *slog.Logger
	signed atomic.Uint64 // line that the file is about

	// The fields below are for the goroutine that writes.
	fresh  int       // lines since the last checkpoint among the lines
	since  time.Time // of the first of them
	proven time.Time // when the file was last written
	failed time.Time // since when the file cannot be written; zero when it can
}

// signForLine returns a checkpoint that is written among the lines, after the line at p.
func (c *checkpoints) signForLine(p place) (string, error) {
	return c.sign.signCheckpoint(c.ofLine, p, c.now())
}

// writeFile replaces the file by one about the line at p.
func (c *checkpoints) writeFile(p place) error {
	text, err := c.sign.signCheckpoint(c.ofHead, p, c.now())
	if err == nil {
		err = pathsafe.ReplaceFileAt(filepath.Join(c.dir, checkpointFile), []byte(text), 0o600)
	}
	switch {
	case err != nil && c.failed.IsZero():
		c.failed = c.now()
		c.log.Error("audit checkpoint not written: after a minute, no lines are written either",
			"folder", c.dir, "error", err)
	case err == nil && !c.failed.IsZero():
		c.failed = time.Time{}
		c.log.Info("audit checkpoint written again", "folder", c.dir)
	}
	if err != nil {
		return fmt.Errorf("writing the checkpoint: %w", err)
	}
	c.signed.Store(p.seq)
	c.proven = c.now()
	return nil
}

// isFileOverdue reports whether the file could not be written for so long that lines at the end could be cut off
// unnoticed.
func (c *checkpoints) isFileOverdue() bool {
	return !c.failed.IsZero() && c.now().Sub(c.failed) >= signEvery
}

// ensureFileWritable writes the file, which shows that the folder can be written, unless that was done just now.
func (c *checkpoints) ensureFileWritable(p place) error {
	if c.failed.IsZero() && c.now().Sub(c.proven) < provenFor {
		return nil
	}
	return c.writeFile(p)
}

// noteLines is called when lines were written.
func (c *checkpoints) noteLines(count int, at time.Time) {
	if c.fresh == 0 {
		c.since = at
	}
	c.fresh += count
}

// isLineDue reports whether a checkpoint among the lines is due. It is also due when the clock was set, in either
// direction: the times of lines without a signature may not be far apart, or they would look like a forgery after a
// crash.
func (c *checkpoints) isLineDue() bool {
	return c.fresh > 0 && (c.fresh >= signLines || c.now().Sub(c.since).Abs() >= signEvery)
}
