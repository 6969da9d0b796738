package audit

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/time/rate"

	"sallyport/internal/groupcommit"
	"sallyport/internal/pathsafe"
)

// Open opens the audit log of a state folder, or starts one, and locks it until
// Close. If a server was killed, it records what that left of its last line. It starts the chain of
// refusals in an audit log of an earlier version, which has none.
// Errors: ErrHeld, and ErrDamaged with what is wrong.
func Open(o Options, now func() time.Time, log *slog.Logger) (*Log, error) {
	l := &Log{now: now, counts: counts{limits: map[kind]*rate.Limiter{}, tally: map[kind]tally{}, taken: now()}}
	l.refusals = newChain(refusalsBook(), refusalsFolder(o.State), &l.counts, now, log)
	l.decisions = newChain(decisionsBook(), chainFolder(o.State), &l.counts, now, log)
	l.decisions.preface.line = l.refusalsLine
	l.setBounds(o)
	if err := l.openChains(o); err != nil {
		err = errors.Join(err, l.refusals.file.closeFile(), l.decisions.file.closeFile(), l.unlockFolders())
		return nil, fmt.Errorf("opening the audit log in %s: %w", chainFolder(o.State), err)
	}
	go l.refusals.serveQueue()
	go l.decisions.serveQueue()
	return l, nil
}

func newChain(b book, dir string, c *counts, now func() time.Time, log *slog.Logger) *chain {
	return &chain{
		dir: dir, now: now, log: log, counts: c,
		queue: groupcommit.New[entry](queueRoom, maxBatch), probes: make(chan chan error),
		health: health{dir: dir, now: now, log: log}, place: startPlace(),
		checkpoints: checkpoints{book: b, dir: dir, now: now, log: log},
	}
}

// refusalsLine returns the line among the decisions that records how far the refusals go at least, so that
// their folder cannot be removed or replaced by an older one unnoticed.
func (l *Log) refusalsLine() Line {
	return Line{Event: Refusals, Through: l.refusals.checkpoints.signed.Load()}
}

// openChains changes nothing before it is known that both chains are as a server left them.
func (l *Log) openChains(o Options) (err error) {
	for _, c := range []*chain{l.decisions, l.refusals} {
		lock, err := lockChainFolder(c.dir)
		if err != nil {
			return err
		}
		l.locks = append(l.locks, lock)
	}
	if o.Key == nil {
		if o.Key, err = readOrMakeKey(o.State); err != nil {
			return err
		}
	}
	sign, err := newSigner(o.Key)
	if err != nil {
		return err
	}
	l.decisions.checkpoints.sign, l.refusals.checkpoints.sign = sign, sign
	known, err := recordVerifier(o.State, sign)
	if err != nil {
		return err
	}
	decisions, err := l.decisions.findEnd(known)
	if err != nil {
		return err
	}
	refusals, err := l.refusals.findEnd(known)
	if err != nil {
		return err
	}
	if err := decisions.checkRefusalsExist(refusals, l.refusals.dir); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err := l.refusals.continueFrom(refusals); err != nil { // first: the decisions record how far they go
		return err
	}
	return l.decisions.continueFrom(decisions)
}

// recordVerifier adds the verifier key to the earlier ones, and returns all.
func recordVerifier(state string, sign *signer) (note.Verifiers, error) {
	keys, err := Keys(state)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if len(keys) == 0 || keys[len(keys)-1] != sign.vkey {
		keys = append(keys, sign.vkey)
		name, text := filepath.Join(chainFolder(state), verifierFile), strings.Join(keys, "\n")+"\n"
		if err := pathsafe.ReplaceFileAt(name, []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	return Verifiers(keys)
}

// findEnd finds the end of the chain. It returns nil for an empty folder.
func (l *chain) findEnd(known note.Verifiers) (*walk, error) {
	segments, err := listSegments(l.dir)
	if err != nil {
		return nil, err
	}
	if len(segments) == 0 {
		return nil, l.checkpoints.checkNeverUsed(known)
	}
	h, err := readCheckpointFile(l.dir, l.checkpoints.book, known)
	if err != nil {
		return nil, err
	}
	s := segments[len(segments)-1]
	if err := l.file.openFile(s.name, os.O_RDWR); err != nil {
		return nil, err
	}
	w, err := walkLastSegment(s, l.file.file, l.checkpoints.book, h, known)
	if err != nil {
		return nil, err
	}
	l.place = w.place
	l.file.size = s.size - int64(len(w.torn))
	l.checkpoints.signed.Store(h.seq)
	return w, nil
}

// checkNeverUsed returns an error if the chain had lines.
func (c *checkpoints) checkNeverUsed(known note.Verifiers) error {
	old, err := os.ReadFile(filepath.Join(c.dir, checkpointFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	h, err := openCheckpoint(c.ofHead, string(old), known)
	if err == nil && h.seq > 0 {
		err = fmt.Errorf("it has no lines, but its checkpoint has seen %d", h.seq)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil
}

// continueFrom continues the chain after the end that findEnd found.
func (l *chain) continueFrom(w *walk) error {
	if w == nil {
		return l.beginChain()
	}
	return l.repairEnd(w)
}

// beginChain starts a new chain. Its checkpoint comes first, so that there are never
// lines without one.
func (l *chain) beginChain() error {
	if err := l.checkpoints.writeFile(l.place); err != nil {
		return err
	}
	if err := l.file.createSegment(l.dir, l.seq+1); err != nil {
		return err
	}
	return l.appendLines(true, Line{Event: Begun, Verifier: l.checkpoints.sign.vkey})
}

// readCheckpointFile opens the file checkpoint.
func readCheckpointFile(dir string, b book, known note.Verifiers) (checkpoint, error) {
	text, err := os.ReadFile(filepath.Join(dir, checkpointFile))
	if err != nil {
		return checkpoint{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	h, err := openCheckpoint(b.ofHead, string(text), known)
	if err != nil {
		return checkpoint{}, fmt.Errorf("%w: its checkpoint: %w", ErrDamaged, err)
	}
	return h, nil
}

// walkLastSegment walks to the end of the last segment. It refuses what no server leaves,
// not even one that was killed.
func walkLastSegment(s segment, r io.Reader, b book, h checkpoint, known note.Verifiers) (*walk, error) {
	w := &walk{known: known, book: &b, repair: true, heads: []head{{h.place, checkpointFile}}}
	err := w.walkSegment(s, r, true)
	if err == nil && w.report.Lines == 0 && h.seq == s.first-1 { // it was made just before the server ended
		w.place = h.place
	} else {
		err = errors.Join(err, w.checkEnd())
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w; see sallyport audit verify", ErrDamaged, err)
	}
	return w, nil
}

// Check returns why Open would refuse the content of the audit log of a state folder,
// while another server writes it. It returns nil for a missing one, which Open starts.
// Errors wrap ErrDamaged, or are about reading.
func Check(state string) error {
	keys, err := Keys(state)
	if _, missing := os.Stat(chainFolder(state)); errors.Is(missing, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	known, err := Verifiers(keys)
	if err != nil {
		return err
	}
	const attempts, pause = 20, 20 * time.Millisecond
	for n := 1; ; n++ {
		err := checkChainEnds(state, known)
		if err == nil || n == attempts { // another segment may have been started in between
			return err
		}
		<-time.After(pause)
	}
}

func checkChainEnds(state string, known note.Verifiers) error {
	decisions, err := walkChainEnd(chainFolder(state), decisionsBook(), known)
	if err != nil {
		return err
	}
	if decisions == nil {
		return fmt.Errorf("%w: it has no lines", ErrDamaged)
	}
	refusals, err := walkChainEnd(refusalsFolder(state), refusalsBook(), known)
	if err != nil {
		return err
	}
	if err := decisions.checkRefusalsExist(refusals, refusalsFolder(state)); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil
}

// walkChainEnd walks to the end of a chain. It returns nil for an empty or missing folder.
func walkChainEnd(dir string, b book, known note.Verifiers) (*walk, error) {
	h, err := readCheckpointFile(dir, b, known) // first, because lines may be added between
	segments, missing := listSegments(dir)
	if errors.Is(missing, os.ErrNotExist) || missing == nil && len(segments) == 0 {
		return nil, nil
	}
	if err := errors.Join(err, missing); err != nil {
		return nil, err
	}
	s := segments[len(segments)-1]
	f, err := os.Open(s.name)
	if err != nil {
		return nil, err
	}
	w, err := walkLastSegment(s, f, b, h, known)
	return w, errors.Join(err, f.Close())
}

// repairEnd completes what a server that was killed left, and signs it: lines without a
// signature must not add up over many kills.
func (l *chain) repairEnd(w *walk) error {
	var lines []Line
	if len(w.torn) > 0 {
		l.log.Warn("audit line cut", "bytes", len(w.torn), "after", l.seq)
		// The line that quotes it is longer, and overwrites it in one write.
		l.file.spilt = len(w.torn) > cutQuoted
		lines = append(lines, Line{
			Event: Cut, Bytes: int64(len(w.torn)), SHA256: hashLine(w.torn),
			Cut: string(w.torn[:min(len(w.torn), cutQuoted)]),
		})
	}
	if l.seq == 0 {
		lines = append(lines, Line{Event: Begun, Verifier: l.checkpoints.sign.vkey})
	}
	if len(lines) > 0 {
		if err := l.appendLines(true, lines...); err != nil {
			return err
		}
	}
	if len(lines) == 0 && (w.closed || w.report.Lines == 0) {
		return nil
	}
	return l.writeBothCheckpoints()
}
