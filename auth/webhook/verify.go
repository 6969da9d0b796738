package webhook

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"sallyport/auth/field"
	"sallyport/internal/strictjson"
)

const maxEntries = 16 // of a signature header

// ErrAbsent is the error of a delivery without the scheme's signature.
var ErrAbsent = errors.New("the signature is absent")

// Signature is what the headers of a delivery hold for one scheme.
type Signature struct {
	Sums      [][]byte // the delivery is authentic if one of them verifies
	Timestamp string   // as it was signed; empty if the signature covers no {ts}
	ID        string   // from the header that the signature covers; empty if it covers no {id}

	time time.Time // of Timestamp
}

// Message is what the sender of a verified delivery says about it.
type Message struct {
	ID    string    // the delivery's id in header or body; empty without one
	Time  time.Time // of signing; zero if the scheme has none
	Event string    // the kind of delivery, if the sender says; not signed if it is a header
	// EventUnreadable says that the delivery has an event name that is not usable.
	EventUnreadable bool
}

// Read returns the signature in the headers of a delivery. The error is [ErrAbsent] if the delivery
// has none, and any other if what it has is malformed.
func (s *Scheme) Read(h http.Header) (*Signature, error) {
	if len(h[s.spec.Header]) == 0 {
		return nil, ErrAbsent
	}
	sig, err := s.parseHeader(h.Get(s.spec.Header))
	if err != nil {
		// JWTs and tokens use the same header, and have another form.
		if s.spec.Header == "Authorization" {
			return nil, ErrAbsent
		}
		return nil, fmt.Errorf("the header %s %w", s.spec.Header, err)
	}
	if s.tsHeader != "" {
		sig.Timestamp = h.Get(s.tsHeader)
	}
	if s.signed.coversHole("ts") {
		if sig.time, err = readUnix(sig.Timestamp, s.spec.TS.Unit); err != nil {
			return nil, fmt.Errorf("the timestamp %w", err)
		}
	}
	if s.idHeader != "" {
		if sig.ID = h.Get(s.idHeader); !s.signed.isUnambiguousID(sig.ID) {
			return nil, fmt.Errorf("the header %s is missing or is not an id", s.idHeader)
		}
	}
	return sig, nil
}

// parseHeader splits the value of the signature header.
func (s *Scheme) parseHeader(value string) (*Signature, error) {
	items := []string{value}
	if s.spec.List != "" {
		items = strings.SplitN(value, s.spec.List, maxEntries+1)
	}
	if len(items) > maxEntries {
		return nil, fmt.Errorf("has more than %d entries", maxEntries)
	}
	sig := &Signature{}
	for _, item := range items {
		for _, e := range s.entries {
			text, ok := e.cutHole(item, s.spec.List != "")
			switch {
			case !ok:
			case e.hole == "ts" && sig.Timestamp != "":
				return nil, errors.New("has two timestamps")
			case e.hole == "ts":
				sig.Timestamp = text
			default:
				sum, err := decodeStrict(s.spec.Encoding, text)
				if err != nil || len(sum) != s.sigSize {
					return nil, fmt.Errorf("has a signature that is not %d bytes in %s", s.sigSize, s.spec.Encoding)
				}
				sig.Sums = append(sig.Sums, sum)
			}
		}
	}
	if len(sig.Sums) == 0 {
		return nil, errors.New("has no signature of this scheme")
	}
	return sig, nil
}

// Describe returns what the sender says about a delivery after its signature has verified, and checks its time:
// both ways, because a timestamp of tomorrow would verify for a day. The error is a [field.StaleError], or any
// other if the body has no time where the scheme puts it.
func (s *Scheme) Describe(sig *Signature, h http.Header, body []byte, now time.Time) (*Message, error) {
	fields := s.decodeBody(body)
	m := &Message{ID: sig.ID, Time: sig.time, Event: s.readEvent(h, fields)}
	m.EventUnreadable = m.Event == "" && s.hasEvent(h, fields)
	if s.spec.ID != nil && s.spec.ID.Body != "" {
		m.ID = readTextAt(fields, s.idPath)
	}
	ts := s.spec.TS
	if ts == nil {
		return m, nil
	}
	if ts.Body != "" {
		at, err := readUnix(readTextAt(fields, s.tsPath), ts.Unit)
		if err != nil {
			return nil, fmt.Errorf("the timestamp in the body %w", err)
		}
		m.Time = at
	}
	return m, field.CheckAge(m.Time, now, ts.Tolerance, ts.Tolerance)
}

// decodeBody decodes the body if the scheme reads fields of it. It returns nil if the body is not JSON.
func (s *Scheme) decodeBody(body []byte) any {
	reads := s.spec.TS != nil && s.spec.TS.Body != ""
	for _, f := range []*FieldSpec{s.spec.ID, s.spec.Event} {
		reads = reads || f != nil && f.Body != ""
	}
	if !reads {
		return nil
	}
	if s.PayloadForm {
		var err error
		if body, err = strictjson.Unwrap(body); err != nil {
			return nil
		}
	}
	v, err := strictjson.Decode(body)
	if err != nil {
		return nil
	}
	return v
}

// readTextAt returns the string or number at a path, or nothing.
func readTextAt(v any, path strictjson.Path) string {
	got, _ := path.Lookup(v) // the diagnosis is that of the field
	switch x := got.(type) {
	case string:
		return x
	case json.Number:
		return x.String()
	}
	return ""
}

// hasEvent reports whether a delivery has something in the place of its event name.
func (s *Scheme) hasEvent(h http.Header, fields any) bool {
	f := s.spec.Event
	switch {
	case f == nil:
		return false
	case f.Body != "":
		return !s.eventPath.IsAbsent(fields)
	}
	return len(h[f.Header]) > 0
}

// readEvent returns the sender's word for the kind of delivery. A header is not signed.
func (s *Scheme) readEvent(h http.Header, fields any) (event string) {
	switch f := s.spec.Event; {
	case f == nil:
	case f.Body != "":
		event = readTextAt(fields, s.eventPath)
	case len(h[f.Header]) == 1:
		event = h.Get(f.Header)
	}
	if !field.IsPrintable(strings.ReplaceAll(event, " ", "_")) { // "Push Hook" of GitLab has a space
		return ""
	}
	return event
}
