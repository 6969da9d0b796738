// Package audit keeps the audit log: a tamper-evident log of decisions about requests and of events of the server.
//
// Lines are JSON. Each has the hash of the line before it, and signed checkpoints cover all lines before them. There
// are two such chains, in the folder audit of the state folder and in its subfolder refusals: what was allowed, and
// what was refused. Strangers can cause refusals in any number, and those never displace lines about what was allowed.
//
// Invariants:
//
//   - A line about what is allowed is on the disk before it is done ([Store], [Log.Write]). If the line cannot be
//     written, nothing is started, joined, replaced or cancelled. If it is then not done, a line Void follows.
//   - Lines that are removed to keep within bounds are recorded in a line that is signed before they are removed.
//   - A chain has no more lines without a signature at its end than the server writes between two checkpoints.
//
// Failures: a server that is killed may leave part of a line, which [Open] records in the next line. Anything else that
// a server does not leave behind is [ErrDamaged]. While lines cannot be written, [Log.Err] returns why, and a later
// line records since when.
//
// The server uses [Open] and [Store]; [Verifier] checks a log with the keys that [Keys] returns; [Copy] copies it.
package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Line is one line of the audit log: a decision about a request, or an event of the server. Each key of a line, which
// docs/audit.md describes, is one of its many fields.
type Line struct {
	Seq      uint64    `json:"seq"`  // set by the Log, from 1 on
	Time     time.Time `json:"time"` // set by the Log
	Decision Decision  `json:"decision,omitempty"`
	Event    Event     `json:"event,omitempty"`

	Action  string `json:"action,omitempty"`  // what was allowed: start, join, cancel, pause or resume
	Request string `json:"request,omitempty"` // id
	Status  int    `json:"status,omitempty"`
	Address string `json:"address,omitempty"`
	Method  string `json:"method,omitempty"`
	Path    string `json:"path,omitempty"`
	Caller  string `json:"caller,omitempty"` // of a refused credential: the caller that it names
	Kind    string `json:"kind,omitempty"`   // of the credential: hmac, signature, jwt, token, mtls or local
	Key     string `json:"key,omitempty"`
	Hook    string `json:"hook,omitempty"`
	Params  string `json:"params,omitempty"` // Digest of the values
	Run     string `json:"run,omitempty"`
	RerunOf string `json:"rerun_of,omitempty"`
	Reason  string `json:"reason,omitempty"`

	Version  string    `json:"version,omitempty"`  // of the program
	Config   string    `json:"config,omitempty"`   // SHA-256 of the configuration file
	Verifier string    `json:"verifier,omitempty"` // key that checkpoints are verified with from here on
	Count    int       `json:"count,omitempty"`    // of refusals without a line
	Since    time.Time `json:"since,omitzero"`
	Until    time.Time `json:"until,omitzero"`
	Through  uint64    `json:"through,omitempty"` // removed: the last such line; refusals: a line that exists
	Cut      string    `json:"cut,omitempty"`     // the beginning of the part of a line
	Bytes    int64     `json:"bytes,omitempty"`   // all of it
	SHA256   string    `json:"sha256,omitempty"`  // of all of it
	Note     string    `json:"note,omitempty"`    // checkpoint: the signature over the line before
}

// Decision is what was decided about a request.
type Decision string

// The decisions.
const (
	Allowed  Decision = "allowed"  // written before what it allows is done
	Void     Decision = "void"     // what was allowed was not done; the reason says why
	Refused  Decision = "refused"  // turned away
	Replayed Decision = "replayed" // accepted before, and answered with that run
	Ignored  Decision = "ignored"  // verified, but a condition of the hook does not hold; the reason names it
	// Handshake is a test or registration by a sender, which was answered. The reason names it.
	Handshake Decision = "handshake"
	Observed  Decision = "observed" // of a caller with observe; the reason is the decision without it
)

// Event is a line that is not a decision.
type Event string

// The events.
const (
	Begun      Event = "begun"      // the first line
	Checkpoint Event = "checkpoint" // a signature over all lines before
	Removed    Event = "removed"    // of the oldest lines, to keep within bounds
	Cut        Event = "cut"        // of a line that was not written whole when the server was killed
	Resumed    Event = "resumed"    // after lines could not be written
	Suppressed Event = "suppressed" // refusals that were only counted
	Refusals   Event = "refusals"   // the refusals have a separate chain; how far it was signed
	Started    Event = "server started"
	Stopped    Event = "server stopped"
	HandedOver Event = "server handed over"
	Reloaded   Event = "configuration reloaded"
)

// Digest returns the SHA-256 of values, in hex: of each name and its value, in
// the order of the names, with a NUL after each. No value holds a NUL.
func Digest(values map[string]string) string {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(values)) {
		_, _ = fmt.Fprintf(h, "%s\x00%s\x00", name, values[name]) // a hash returns no error
	}
	return hex.EncodeToString(h.Sum(nil))
}

// longest bounds a field that a stranger can fill, in bytes of JSON.
const longest = 200

// Shorten cuts a text to at most so many bytes of JSON, and an ellipsis: escaping can make a text six
// times as long.
func Shorten(s string, most int) string {
	size := 0
	for i, r := range s {
		size += escapedSize(r)
		if size > most {
			return s[:i] + "…"
		}
	}
	return s
}

// escapedSize returns an upper bound of the bytes that a character takes in JSON. A byte that is not UTF-8
// takes as many as a control character.
func escapedSize(r rune) int {
	switch {
	case r == '"' || r == '\\':
		return 2
	case r < ' ', r == '<', r == '>', r == '&', r == utf8.RuneError, !strconv.IsPrint(r):
		return 6
	}
	return utf8.RuneLen(r)
}

// A line ends with the hash of the line before it and with its own, which is the hash of
// everything before that on the line.
const (
	prevField = `,"prev":"`
	hashField = `","hash":"`
	lineEnd   = "\"}\n"
	hashSize  = 2 * sha256.Size
)

// maxLine bounds a line, far above the longest that is written.
const maxLine = 64 << 10

// place is how far a chain of lines goes: the number and the hash of its last
// line.
type place struct {
	seq  uint64
	hash string // empty when it is not known
}

// startPlace is the place before the first line.
func startPlace() place { return place{hash: strings.Repeat("0", hashSize)} }

// appendLine appends a line to b.
func (p *place) appendLine(b []byte, l Line) ([]byte, error) {
	l.Seq = p.seq + 1
	for _, s := range []*string{&l.Address, &l.Method, &l.Path, &l.Key, &l.Reason} {
		*s = Shorten(*s, longest)
	}
	text, err := json.Marshal(l)
	if err != nil {
		return b, fmt.Errorf("writing a line: %w", err)
	}
	from := len(b)
	b = append(b, text[:len(text)-1]...)
	b = append(b, prevField+p.hash...)
	hash := hashLine(b[from:])
	*p = place{l.Seq, hash}
	return append(b, hashField+hash+lineEnd...), nil
}

func hashLine(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// link is the part of a line that links it to the others.
type link struct {
	seq              uint64
	prev, hash, real string // real is what the hash should be
	at               time.Time
}

// parseLink reads the link of a line without its end. It is false when the line is
// not of the form that add writes.
func parseLink(b []byte) (link, bool) {
	const foot = len(prevField) + hashSize + len(hashField) + hashSize + len(lineEnd) - 1
	if len(b) < foot {
		return link{}, false
	}
	own := len(b) - foot + len(prevField) + hashSize
	rest, ok1 := bytes.CutPrefix(b[len(b)-foot:], []byte(prevField))
	prev, rest := string(rest[:min(hashSize, len(rest))]), rest[min(hashSize, len(rest)):]
	rest, ok2 := bytes.CutPrefix(rest, []byte(hashField))
	hash, ok3 := bytes.CutSuffix(rest, []byte(lineEnd[:len(lineEnd)-1]))
	head, ok4 := bytes.CutPrefix(b, []byte(`{"seq":`))
	number, rest, ok5 := bytes.Cut(head, []byte(`,"time":"`))
	written, _, ok6 := bytes.Cut(rest, []byte(`"`))
	seq, err1 := strconv.ParseUint(string(number), 10, 64)
	at, err2 := time.Parse(time.RFC3339Nano, string(written))
	if !ok1 || !ok2 || !ok3 || !ok4 || !ok5 || !ok6 || err1 != nil || err2 != nil || seq == 0 {
		return link{}, false
	}
	return link{seq: seq, prev: prev, hash: string(hash), real: hashLine(b[:own]), at: at}, true
}
