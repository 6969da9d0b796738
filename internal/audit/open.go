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

	"sallyport/internal/owned"
)

// Open opens the audit of a state folder, or begins one, and holds it until
// Close. It records what a server that was killed left of its last line.
// Errors: ErrHeld, and ErrDamaged with what is wrong.
func Open(o Options, now func() time.Time, log *slog.Logger) (*Log, error) {
	l := &Log{
		dir: folder(o.State), now: now, log: log,
		ops: make(chan *op, waiting), probes: make(chan chan error), closing: make(chan struct{}), ended: make(chan struct{}),
		refusals: refusals{limits: map[kind]*rate.Limiter{}, tally: map[kind]tally{}, told: now()},
		place:    begin(),
	}
	l.keep.Store(o.Keep)
	lock, err := hold(l.dir)
	if err != nil {
		return nil, fmt.Errorf("opening the audit in %s: %w", l.dir, err)
	}
	l.lock = lock
	if err := l.open(o); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the audit in %s: %w", l.dir, err), l.shut())
	}
	go l.serve()
	return l, nil
}

func (l *Log) open(o Options) (err error) {
	if o.Key == nil {
		if o.Key, err = ownKey(o.State); err != nil {
			return err
		}
	}
	if l.sign, err = newSigner(o.Key); err != nil {
		return err
	}
	known, err := l.tellVerifier()
	if err != nil {
		return err
	}
	segments, err := list(l.dir)
	if err != nil {
		return err
	}
	if len(segments) == 0 {
		return l.begin(known)
	}
	return l.resume(segments[len(segments)-1], known)
}

// tellVerifier adds the key that verifies to those of before, and returns all.
func (l *Log) tellVerifier() (note.Verifiers, error) {
	keys, err := readKeys(l.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if len(keys) == 0 || keys[len(keys)-1] != l.sign.vkey {
		keys = append(keys, l.sign.vkey)
		if err := owned.ReplaceFileAt(filepath.Join(l.dir, verifierFile), []byte(strings.Join(keys, "\n")+"\n"), 0o600); err != nil {
			return nil, err
		}
	}
	return Verifiers(keys)
}

// begin starts a new audit. Its checkpoint comes first, so that there never are
// lines without one.
func (l *Log) begin(known note.Verifiers) error {
	old, err := os.ReadFile(filepath.Join(l.dir, checkpointFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err == nil {
		h, err := open(ofHead, string(old), known)
		if err == nil && h.seq > 0 {
			err = fmt.Errorf("there is no line, and its checkpoint has seen %d", h.seq)
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
	}
	if err := l.head(); err != nil {
		return err
	}
	if err := l.create(); err != nil {
		return err
	}
	return l.append(true, Line{Event: Begun, Verifier: l.sign.vkey})
}

// resume goes on after the last line of a segment.
func (l *Log) resume(s segment, known note.Verifiers) error {
	h, err := latest(l.dir, known)
	if err != nil {
		return err
	}
	if err := l.use(s.name, os.O_RDWR); err != nil {
		return err
	}
	w, err := leftOff(s, l.file, h, known)
	if err != nil {
		return err
	}
	l.place, l.last, l.size = w.place, h.seq, s.size-int64(len(w.torn))
	return l.mend(w)
}

// latest opens the file checkpoint.
func latest(dir string, known note.Verifiers) (opened, error) {
	text, err := os.ReadFile(filepath.Join(dir, checkpointFile))
	if err != nil {
		return opened{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	h, err := open(ofHead, string(text), known)
	if err != nil {
		return opened{}, fmt.Errorf("%w: its checkpoint: %w", ErrDamaged, err)
	}
	return h, nil
}

// leftOff walks to the end of the last segment, or refuses what is not as a server
// leaves it, killed or not.
func leftOff(s segment, r io.Reader, h opened, known note.Verifiers) (*walk, error) {
	w := &walk{known: known, repair: true, heads: []head{{h.place, checkpointFile}}}
	err := w.segment(s, r, true)
	if err == nil && w.report.Lines == 0 && h.seq == s.first-1 { // made just before the end
		w.place = h.place
	} else {
		err = errors.Join(err, w.end())
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w; see sallyport audit verify", ErrDamaged, err)
	}
	return w, nil
}

// Check tells whether Open would refuse the audit of a state folder for what is in
// it, while another server writes it. Where there is none, Open begins one.
// Errors wrap ErrDamaged, or are about reading.
func Check(state string) error {
	keys, err := Keys(state)
	if _, missing := os.Stat(folder(state)); errors.Is(missing, os.ErrNotExist) {
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
		err := checkEnd(folder(state), known)
		if err == nil || n == attempts { // another segment may have been begun meanwhile
			return err
		}
		<-time.After(pause)
	}
}

func checkEnd(dir string, known note.Verifiers) error {
	h, err := latest(dir, known) // first: what is written meanwhile is only more
	if err != nil {
		return err
	}
	segments, err := list(dir)
	if err != nil {
		return err
	}
	if len(segments) == 0 {
		return fmt.Errorf("%w: there is no line", ErrDamaged)
	}
	s := segments[len(segments)-1]
	f, err := os.Open(s.name)
	if err != nil {
		return err
	}
	_, err = leftOff(s, f, h, known)
	return errors.Join(err, f.Close())
}

// mend completes what a server that was killed left, and signs for it: lines
// without a signature must not add up over many kills.
func (l *Log) mend(w *walk) error {
	var lines []Line
	if len(w.torn) > 0 {
		l.log.Warn("audit line cut", "bytes", len(w.torn), "after", l.seq)
		// It is longer than what it quotes, and takes its place in one write.
		l.spilt = len(w.torn) > cutQuoted
		lines = append(lines, Line{
			Event: Cut, Bytes: int64(len(w.torn)), SHA256: hashOf(w.torn), Cut: string(w.torn[:min(len(w.torn), cutQuoted)]),
		})
	}
	if l.seq == 0 {
		lines = append(lines, Line{Event: Begun, Verifier: l.sign.vkey})
	}
	if len(lines) > 0 {
		if err := l.append(true, lines...); err != nil {
			return err
		}
	}
	if len(lines) == 0 && (w.closed || w.report.Lines == 0) {
		return nil
	}
	return l.checkpoint()
}
