package audit

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// The writer signs more often than this, whatever happens: more lines at the end
// that no signature vouches for are not its own, or were followed by others.
const (
	mostUnsigned    = 2 * signLines
	longestUnsigned = 2 * signEvery
)

// Fault is the first thing that is wrong with an audit.
type Fault struct {
	File string
	Line int    // 0 for the file as a whole
	Seq  uint64 // that the line has, or should have; 0 where there is none
	What string
	Good uint64 // the signatures before vouch for all lines up to this one
}

func (f *Fault) Error() string {
	at := f.File
	if f.Line > 0 {
		at = fmt.Sprintf("%s:%d", at, f.Line)
	}
	if f.Seq > 0 {
		at = fmt.Sprintf("%s: seq %d", at, f.Seq)
	}
	return fmt.Sprintf("%s: %s (signatures vouch for all up to seq %d)", at, f.What, f.Good)
}

// Report is what was found good.
type Report struct {
	Files       int
	Lines       int
	First, Last uint64 // seq
	Checkpoints int
	Vouched     uint64 // the last line that a signature vouches for; what comes after hangs on the chain alone

	Refusals *Report // of the chain of refusals, if it was checked, too
}

// Verifier checks an audit against signatures. Its zero value knows no key and
// no checkpoint.
type Verifier struct {
	Known note.Verifiers
	// Checkpoints are kept elsewhere: the content of the file checkpoint, as it
	// was at some time.
	Checkpoints map[string]string // by what to call it
}

// Files checks segments of one chain that were taken out of their folder, in order.
func (v *Verifier) Files(names []string) (Report, error) {
	w := v.newWalk()
	for from, text := range v.Checkpoints {
		if err := w.addCheckpoint(from, text); err != nil {
			return Report{}, err
		}
	}
	for i, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return Report{}, err
		}
		err = w.walkSegment(segment{name: name}, f, i == len(names)-1)
		_ = f.Close() // only read
		if err != nil {
			return Report{}, err
		}
	}
	return w.report, w.checkEnd()
}

// State checks the audit of a state folder, whether or not a server writes it.
func (v *Verifier) State(state string) (Report, error) {
	for from, text := range v.Checkpoints {
		if err := v.newWalk().addCheckpoint(from, text); err != nil {
			return Report{}, err
		}
	}
	decisions, err := v.verifyChain(chainFolder(state), decisionsBook())
	if err != nil {
		return Report{}, err
	}
	// Those of an earlier version are among the decisions. Read later, there can only be more of them.
	segments, err := listSegments(refusalsFolder(state))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return Report{}, err
	}
	if len(segments) == 0 {
		return decisions.report, decisions.checkRefusalsExist(nil, refusalsFolder(state))
	}
	refusals, err := v.verifyChain(refusalsFolder(state), refusalsBook())
	if err != nil {
		return Report{}, err
	}
	report := decisions.report
	report.Refusals = &refusals.report
	return report, decisions.checkRefusalsExist(refusals, refusalsFolder(state))
}

// verifyChain checks one chain of a state folder.
func (v *Verifier) verifyChain(dir string, b book) (*walk, error) {
	name := filepath.Join(dir, checkpointFile)
	own, err := os.ReadFile(name) // first: what is written meanwhile is only more
	if errors.Is(err, os.ErrNotExist) {
		return nil, &Fault{File: name, What: "is missing"}
	}
	if err != nil {
		return nil, err
	}
	segments, files, err := openSegments(dir)
	defer closeFiles(files)
	if err != nil {
		return nil, err
	}
	w := v.newWalk()
	w.state, w.book = true, &b
	if err := w.addCheckpoint(name, string(own)); err != nil {
		return nil, err
	}
	for from, text := range v.Checkpoints {
		if _, err := openCheckpoint(b.ofHead, text, w.known); errors.Is(err, errCheckpoint) {
			continue // of the other chain
		}
		if err := w.addCheckpoint(from, text); err != nil {
			return nil, err
		}
	}
	for i, s := range segments {
		if err := w.walkSegment(s, files[i], i == len(segments)-1); err != nil {
			return nil, err
		}
	}
	return w, w.checkEnd()
}

// checkRefusalsExist returns an error if lines are missing at the end of the chain of refusals, which is nil
// if there is none, that the decisions say were there.
func (w *walk) checkRefusalsExist(refusals *walk, dir string) error {
	there := uint64(0)
	if refusals != nil {
		there = refusals.seq
	}
	if w == nil || there >= w.refused {
		return nil
	}
	return &Fault{File: dir, Seq: there + 1, Good: there, What: fmt.Sprintf("is missing, and with it all refusals up to seq %d: a line among the decisions says that they were there", w.refused)}
}

// openSegments opens all, so that none is removed while it waits to be read.
func openSegments(dir string) (segments []segment, files []*os.File, err error) {
	for range 10 {
		if segments, err = listSegments(dir); err != nil {
			return nil, nil, err
		}
		files = nil
		for _, s := range segments {
			f, err2 := os.Open(s.name)
			if err = err2; err != nil {
				break
			}
			files = append(files, f)
		}
		if !errors.Is(err, os.ErrNotExist) { // a running server removed it just now
			break
		}
		closeFiles(files)
	}
	return segments, files, err
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // only read
	}
}

// head is a checkpoint from outside the log.
type head struct {
	place
	from string
}

// walk goes through the lines of an audit, from its first to its last.
type walk struct {
	place

	known   note.Verifiers
	book    *book // what checkpoints say that they are for; nil until the first one says it
	state   bool  // it is a state folder: nothing may be missing
	repair  bool  // a line that is cut off at the end is not a fault
	heads   []head
	report  Report
	doubt   *Fault    // the first line that no signature vouches for yet
	doubted time.Time // when that was written
	at      time.Time // when the last line was
	closed  bool      // that line is a checkpoint
	removed uint64    // all up to this line may be missing
	claimed uint64    // the same, by a line that no signature vouches for yet
	last    Fault     // place of the next line
	refused uint64    // a line says that there are refusals up to this one
	torn    []byte    // such a line
	top     string    // the file that the first line is in
}

func (v *Verifier) newWalk() *walk {
	known := v.Known
	if known == nil {
		known = note.VerifierList()
	}
	return &walk{known: known}
}

// addCheckpoint verifies a checkpoint from outside.
func (w *walk) addCheckpoint(from, text string) error {
	c, err := w.openCheckpoint(func(b book) string { return b.ofHead }, text)
	if err != nil {
		return &Fault{File: from, What: "is no checkpoint with a signature that can be verified: " + err.Error()}
	}
	w.heads = append(w.heads, head{c.place, from})
	return nil
}

// openCheckpoint opens a checkpoint of the chain. The first one decides which chain it is, unless that is known.
func (w *walk) openCheckpoint(kind func(book) string, text string) (c checkpoint, err error) {
	books := []book{decisionsBook(), refusalsBook()}
	if w.book != nil {
		books = []book{*w.book}
	}
	for _, b := range books {
		if c, err = openCheckpoint(kind(b), text, w.known); err == nil {
			w.book = &b
			break
		}
	}
	return c, err
}

// walkSegment checks the lines of one file.
func (w *walk) walkSegment(s segment, r io.Reader, last bool) error {
	w.report.Files++
	w.last = Fault{File: s.name, Line: 1, Seq: w.seq + 1}
	each := func(b []byte) error {
		err := w.checkLine(s, b)
		w.last.Line++
		w.last.Seq = w.seq + 1
		return err
	}
	err := scanLines(r, each)
	var torn *torn
	for i := 0; errors.As(err, &torn) && last && w.state && !w.isNextLineSigned() && i < 50; i++ { // a server may be writing it
		<-time.After(10 * time.Millisecond)
		err = scanLines(io.MultiReader(bytes.NewReader(torn.text), r), each)
	}
	switch {
	case errors.As(err, &torn) && last && w.repair:
		w.torn = torn.text
	case errors.As(err, &torn):
		return w.faultAtLine("is cut off: %d bytes without an end. A server that was killed may have left them; the next one records it", len(torn.text))
	case errors.Is(err, bufio.ErrTooLong):
		return w.faultAtLine("is no line of the audit: it is too long")
	case err != nil:
		return err
	}
	if w.last.Line == 1 && !last {
		return w.faultAtLine("is missing: the file is empty")
	}
	if w.last.Line == 1 && s.first > 0 && w.report.Lines > 0 && s.first != w.seq+1 {
		return w.faultAtLine("belongs to a file whose name says that it begins with seq %d", s.first)
	}
	return nil
}

// isNextLineSigned tells whether a checkpoint from outside has seen the next line.
func (w *walk) isNextLineSigned() bool {
	return slices.ContainsFunc(w.heads, func(h head) bool { return h.seq > w.seq })
}

// faultAtLine is at the line that w.last stands at.
func (w *walk) faultAtLine(format string, a ...any) error {
	f := w.last
	f.What, f.Good = fmt.Sprintf(format, a...), w.report.Vouched
	return &f
}

// checkLine checks one line and goes on to it.
func (w *walk) checkLine(s segment, b []byte) error {
	l, ok := parseLink(b)
	if !ok {
		return w.faultAtLine("is no line of the audit")
	}
	if l.hash != l.real {
		return w.faultAtLine("was changed: its hash is not that of its text")
	}
	if w.report.Lines == 0 {
		if err := w.startAtLine(l); err != nil {
			return err
		}
	}
	switch {
	case l.seq != w.seq+1:
		return w.faultAtLine("is not here, but seq %d is: lines are missing, moved or repeated", l.seq)
	case l.prev != w.hash:
		return w.faultAtLine("does not follow the line before it: one of the two was rewritten")
	case w.last.Line == 1 && s.first > 0 && l.seq != s.first:
		return w.faultAtLine("is in a file whose name says that it begins with seq %d", s.first)
	}
	if !bytes.Contains(b, []byte(`"event":"cut"`)) { // it was written when a server came up, however long after the line before
		w.at = l.at
	}
	if w.doubt == nil {
		w.startDoubt()
	} else if w.closed { // the writer counts from here on, whenever the checkpoint was
		w.doubted = w.at
	}
	w.closed = false
	if bytes.Contains(b, []byte(`"event":"`)) {
		if err := w.checkEvent(b); err != nil {
			return err
		}
	}
	w.place = place{l.seq, l.hash}
	w.report.Lines++
	w.report.Last = l.seq
	return w.compareCheckpoints()
}

// startAtLine takes the place before the first line from that line itself, unless it
// is the first of all.
func (w *walk) startAtLine(l link) error {
	w.place = place{l.seq - 1, l.prev}
	if l.seq == 1 {
		w.place = startPlace()
	}
	w.report.First, w.last.Seq, w.top = l.seq, l.seq, w.last.File
	for _, h := range w.heads {
		if h.seq < w.seq {
			return &Fault{File: h.from, Seq: h.seq, What: fmt.Sprintf("cannot be compared: the lines begin with seq %d", l.seq)}
		}
	}
	return w.compareCheckpoints()
}

// checkEvent looks at those that change what is to be expected.
func (w *walk) checkEvent(b []byte) error {
	var l Line
	if err := json.Unmarshal(b, &l); err != nil {
		return w.faultAtLine("is no line of the audit: %v", err)
	}
	switch l.Event {
	case Checkpoint:
		c, err := w.openCheckpoint(func(b book) string { return b.ofLine }, l.Note)
		if err != nil {
			return w.rewrittenFault(l.Seq, "its signature does not verify: "+err.Error())
		}
		if c.place != w.place {
			return w.rewrittenFault(l.Seq, "what it signs is not the line before it")
		}
		w.report.Checkpoints++
		w.closed = true
		w.endDoubt()
		w.startDoubt() // the checkpoint's own line has yet to be vouched for
	case Removed:
		w.claimed = l.Through
	case Refusals:
		w.refused = max(w.refused, l.Through, 1)
	default: // nothing hangs on it
	}
	return nil
}

// rewrittenFault blames the first line that nothing vouches for.
func (w *walk) rewrittenFault(seq uint64, why string) error {
	f := *w.doubt
	f.Good = w.report.Vouched
	f.What = fmt.Sprintf("was rewritten, or another up to seq %d was: the checkpoint there says so, for %s", seq, why)
	return &f
}

// startDoubt notes that nothing vouches for the line just read.
func (w *walk) startDoubt() {
	here := w.last
	w.doubt, w.doubted = &here, w.at
}

// endDoubt notes that a signature covers everything up to here.
func (w *walk) endDoubt() {
	w.report.Vouched, w.removed, w.doubt = w.seq, w.claimed, nil
}

// compareCheckpoints compares the checkpoints from outside that are about the line just gone
// to.
func (w *walk) compareCheckpoints() error {
	met := false
	for _, h := range w.heads {
		if h.seq != w.seq {
			continue
		}
		if h.hash != w.hash {
			at := w.last
			if w.doubt != nil {
				at = *w.doubt
			}
			at.Good = w.report.Vouched
			at.What = fmt.Sprintf("was rewritten, or another up to seq %d was: %s says so", h.seq, h.from)
			return &at
		}
		met = true
	}
	if met {
		w.endDoubt()
	}
	return nil
}

// checkEnd looks for what is missing before the first line and after the last.
func (w *walk) checkEnd() error {
	if w.report.Lines == 0 && w.state {
		w.place = startPlace()
	}
	for _, h := range w.heads {
		if h.seq > w.seq {
			return w.faultAtLine("is missing, and with it all up to seq %d: %s has seen them", h.seq, h.from)
		}
	}
	if w.report.Lines == 0 && (!w.state || w.report.Files == 0) {
		return errors.New("there is no line of an audit")
	}
	if w.doubt != nil && (w.seq-w.doubt.Seq > mostUnsigned || w.at.Sub(w.doubted) > longestUnsigned) {
		f := *w.doubt
		f.Good = w.report.Vouched
		f.What = fmt.Sprintf("was written by somebody else, or the checkpoints were removed that came after it: no signature vouches for it, nor for any up to seq %d", w.seq)
		return &f
	}
	if w.state && w.report.First > w.removed+1 {
		return &Fault{
			File: w.top, Line: 1, Seq: w.removed + 1, Good: w.removed,
			What: fmt.Sprintf("is missing before this, and with it all up to seq %d: no line that is vouched for says that they were removed", w.report.First-1),
		}
	}
	return nil
}

// torn is what stands at the end of a segment without an end of its own.
type torn struct{ text []byte }

func (t *torn) Error() string { return fmt.Sprintf("%d bytes without an end of line", len(t.text)) }

// scanLines calls each with every line, without its end. Errors: those of each and of
// the reader, bufio.ErrTooLong, and *torn.
func scanLines(r io.Reader, each func([]byte) error) error {
	in := bufio.NewReaderSize(r, maxLine)
	for {
		b, err := in.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			return bufio.ErrTooLong
		case errors.Is(err, io.EOF) && len(b) > 0:
			return &torn{bytes.Clone(b)}
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if err := each(b[:len(b)-1]); err != nil {
			return err
		}
	}
}

// Keys returns the keys that verify a state folder's audit, the newest last.
func Keys(state string) ([]string, error) { return readVerifierKeys(chainFolder(state)) }

func readVerifierKeys(dir string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(dir, verifierFile))
	if err != nil {
		return nil, fmt.Errorf("reading the verifier key: %w", err)
	}
	return strings.Fields(string(text)), nil
}
