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

// The writer always signs more often than this. If more lines at the end have no
// signature, they are forged, or the checkpoints after them were removed.
const (
	mostUnsigned    = 2 * signLines
	longestUnsigned = 2 * signEvery
)

// Fault is the first fault of an audit log.
type Fault struct {
	File string
	Line int    // 0 for the file as a whole
	Seq  uint64 // that the line has, or should have; 0 if it has none
	What string
	Good uint64 // the signatures before cover all lines up to this one
}

func (f *Fault) Error() string {
	at := f.File
	if f.Line > 0 {
		at = fmt.Sprintf("%s:%d", at, f.Line)
	}
	if f.Seq > 0 {
		at = fmt.Sprintf("%s: seq %d", at, f.Seq)
	}
	return fmt.Sprintf("%s: %s (signatures cover all up to seq %d)", at, f.What, f.Good)
}

// Report is what was verified.
type Report struct {
	Files       int
	Lines       int
	First, Last uint64 // seq
	Checkpoints int
	Vouched     uint64 // the last line that a signature covers; later lines have only their hashes

	Refusals *Report // of the chain of refusals, if that was checked too
}

// Verifier verifies an audit log. Its zero value has no key and no checkpoint.
type Verifier struct {
	Known note.Verifiers
	// Checkpoints were kept elsewhere: earlier contents of the file checkpoint, by
	// the name that messages use.
	Checkpoints map[string]string
}

// Files verifies segments of one chain that were copied out of their folder, in order.
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

// State verifies the audit log of a state folder, whether or not a server writes it.
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
	// An earlier version has refusals among the decisions. Refusals are read after the decisions, so that
	// none can be missing.
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

// verifyChain verifies one chain of a state folder.
func (v *Verifier) verifyChain(dir string, b book) (*walk, error) {
	name := filepath.Join(dir, checkpointFile)
	own, err := os.ReadFile(name) // first, because lines may be added between
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

// checkRefusalsExist returns an error if the decisions record more refusals than there are. refusals is nil
// for an empty or missing folder.
func (w *walk) checkRefusalsExist(refusals *walk, dir string) error {
	there := uint64(0)
	if refusals != nil {
		there = refusals.seq
	}
	if w == nil || there >= w.refused {
		return nil
	}
	return &Fault{File: dir, Seq: there + 1, Good: there, What: fmt.Sprintf(
		"is missing, and with it all refusals up to seq %d: a line among the decisions records that they existed",
		w.refused)}
}

// openSegments opens all segments, so that none can be removed before it is read.
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
		if !errors.Is(err, os.ErrNotExist) { // a server removed it just now
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

// head is a checkpoint that is not among the lines.
type head struct {
	place
	from string
}

// walk goes through the lines of a chain, from the first to the last. It has many fields because each property of a
// chain that spans lines needs what earlier lines said.
type walk struct {
	place

	known   note.Verifiers
	book    *book // of the chain; nil until the first checkpoint shows it
	state   bool  // it is a state folder: nothing may be missing
	repair  bool  // part of a line at the end is not a fault
	heads   []head
	report  Report
	doubt   *Fault    // the first line that no signature covers yet
	doubted time.Time // when that was written
	at      time.Time // when the last line was
	closed  bool      // that line is a checkpoint
	removed uint64    // all up to this line may be missing
	claimed uint64    // the same, by a line that no signature covers yet
	last    Fault     // place of the next line
	refused uint64    // a line records refusals up to this one
	torn    []byte    // such part of a line
	top     string    // the file that the first line is in
}

func (v *Verifier) newWalk() *walk {
	known := v.Known
	if known == nil {
		known = note.VerifierList()
	}
	return &walk{known: known}
}

// addCheckpoint verifies a checkpoint that is not among the lines.
func (w *walk) addCheckpoint(from, text string) error {
	c, err := w.openCheckpoint(func(b book) string { return b.ofHead }, text)
	if err != nil {
		return &Fault{File: from, What: "is not a checkpoint with a valid signature: " + err.Error()}
	}
	w.heads = append(w.heads, head{c.place, from})
	return nil
}

// openCheckpoint verifies a checkpoint of the chain. If the chain is not known yet, the first one shows it.
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

// walkSegment verifies the lines of one file.
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
	// A server may be writing the line.
	for i := 0; errors.As(err, &torn) && last && w.state && !w.isNextLineSigned() && i < 50; i++ {
		<-time.After(10 * time.Millisecond)
		err = scanLines(io.MultiReader(bytes.NewReader(torn.text), r), each)
	}
	switch {
	case errors.As(err, &torn) && last && w.repair:
		w.torn = torn.text
	case errors.As(err, &torn):
		return w.faultAtLine(
			"is cut off: %d bytes without an end. A server that was killed may have left them; the next one records it",
			len(torn.text))
	case errors.Is(err, bufio.ErrTooLong):
		return w.faultAtLine("is not a line of the audit log: it is too long")
	case err != nil:
		return err
	}
	if w.last.Line == 1 && !last {
		return w.faultAtLine("is missing: the file is empty")
	}
	if w.last.Line == 1 && s.first > 0 && w.report.Lines > 0 && s.first != w.seq+1 {
		return w.faultAtLine("is expected, but the file is named for seq %d", s.first)
	}
	return nil
}

// isNextLineSigned reports whether a checkpoint that is not among the lines covers the next line.
func (w *walk) isNextLineSigned() bool {
	return slices.ContainsFunc(w.heads, func(h head) bool { return h.seq > w.seq })
}

// faultAtLine returns a fault at the next line.
func (w *walk) faultAtLine(format string, a ...any) error {
	f := w.last
	f.What, f.Good = fmt.Sprintf(format, a...), w.report.Vouched
	return &f
}

// checkLine verifies the next line.
func (w *walk) checkLine(s segment, b []byte) error {
	l, ok := parseLink(b)
	if !ok {
		return w.faultAtLine("is not a line of the audit log")
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
		return w.faultAtLine("is the first line of a file that is named for seq %d", s.first)
	}
	// A line cut was written when a server started, maybe long after the line before.
	if !bytes.Contains(b, []byte(`"event":"cut"`)) {
		w.at = l.at
	}
	if w.doubt == nil {
		w.startDoubt()
	} else if w.closed { // the writer counts from the line after a checkpoint
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
			what := fmt.Sprintf("cannot be compared: the lines begin with seq %d", l.seq)
			return &Fault{File: h.from, Seq: h.seq, What: what}
		}
	}
	return w.compareCheckpoints()
}

// checkEvent handles events that change what is expected.
func (w *walk) checkEvent(b []byte) error {
	var l Line
	if err := json.Unmarshal(b, &l); err != nil {
		return w.faultAtLine("is not a line of the audit log: %v", err)
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
		w.startDoubt() // no signature covers the line of the checkpoint yet
	case Removed:
		w.claimed = l.Through
	case Refusals:
		w.refused = max(w.refused, l.Through, 1)
	default: // it changes nothing that is expected
	}
	return nil
}

// rewrittenFault returns a fault at the first line that no signature covers.
func (w *walk) rewrittenFault(seq uint64, why string) error {
	f := *w.doubt
	f.Good = w.report.Vouched
	f.What = fmt.Sprintf(
		"was rewritten, or another up to seq %d was: the checkpoint there does not match: %s", seq, why)
	return &f
}

// startDoubt notes that no signature covers the line just read.
func (w *walk) startDoubt() {
	here := w.last
	w.doubt, w.doubted = &here, w.at
}

// endDoubt notes that a signature covers everything up to here.
func (w *walk) endDoubt() {
	w.report.Vouched, w.removed, w.doubt = w.seq, w.claimed, nil
}

// compareCheckpoints compares the line just read with the checkpoints that are about it.
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
			at.What = fmt.Sprintf("was rewritten, or another up to seq %d was: %s does not match", h.seq, h.from)
			return &at
		}
		met = true
	}
	if met {
		w.endDoubt()
	}
	return nil
}

// checkEnd finds lines that are missing before the first and after the last.
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
		return errors.New("found no lines of an audit log")
	}
	if w.doubt != nil && (w.seq-w.doubt.Seq > mostUnsigned || w.at.Sub(w.doubted) > longestUnsigned) {
		f := *w.doubt
		f.Good = w.report.Vouched
		f.What = fmt.Sprintf(
			"is forged, or the checkpoints after it were removed: no signature covers it, nor any line up to seq %d",
			w.seq)
		return &f
	}
	if w.state && w.report.First > w.removed+1 {
		return &Fault{
			File: w.top, Line: 1, Seq: w.removed + 1, Good: w.removed,
			What: fmt.Sprintf(
				"is missing before this, and with it all up to seq %d: no line with a signature records their removal",
				w.report.First-1),
		}
	}
	return nil
}

// torn is the part of a line at the end of a segment.
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

// Keys returns the verifier keys of the audit log of a state folder, the newest last.
func Keys(state string) ([]string, error) { return readVerifierKeys(chainFolder(state)) }

func readVerifierKeys(dir string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(dir, verifierFile))
	if err != nil {
		return nil, fmt.Errorf("reading the verifier key: %w", err)
	}
	return strings.Fields(string(text)), nil
}
