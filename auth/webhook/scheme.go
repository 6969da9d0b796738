// Package webhook verifies and makes the signatures with which senders of webhooks sign their deliveries:
// an HMAC or an Ed25519 signature in a header, which covers the body and often a time and an id.
//
// What a sender puts on the wire is data, a [SchemeSpec]: the header, its layout, and a template of what
// is signed. [Preset] has those of known senders; [CompileScheme] checks any other. A template with holes that
// could be filled in two ways is an error, so a signature stands for one delivery only.
//
// A delivery is verified in three steps: [Scheme.Read] its headers, [Key.Verify] the signature, and
// [Scheme.Describe] what the sender says and when. Each step fails closed: a header that does not have the
// form of the scheme is an error. The package reads no clock and no file, and keeps no state. Package auth
// knows the caller of the key, and decides whether the delivery is new.
package webhook

import (
	"cmp"
	"crypto/ed25519"
	"crypto/fips140"
	"crypto/sha1" //nolint:gosec // only by an option that is named dangerous
	"crypto/sha256"
	"crypto/sha512"
	"hash"
	"slices"
	"strings"
	"time"

	"sallyport/auth/field"
	"sallyport/internal/diag"
	"sallyport/internal/strictjson"
)

// MaxTolerance is the longest time between a signed time and now that a scheme may allow.
const MaxTolerance = 24 * time.Hour

// Scheme is a compiled [SchemeSpec]. It never changes, so several goroutines may use it. It has many fields because
// each part of the spec is compiled by itself.
type Scheme struct {
	Name        string // of the preset; empty for a scheme that the file describes
	Unconfirmed bool   // only third parties document it; it has not been run against the sender
	PayloadForm bool   // the sender also sends its JSON as the only field of a form, payload

	spec       SchemeSpec       // with its defaults filled in, and header names canonical
	newHash    func() hash.Hash // nil for ed25519
	sigSize    int
	entries    []entry
	signed     template
	tsHeader   string          // has {ts} if the signature header does not
	idHeader   string          // has {id}
	tsPath     strictjson.Path // where the body has the time, the id and the event, if the spec says so
	idPath     strictjson.Path
	eventPath  strictjson.Path
	handshakes []handshake
	otherHalf  *Scheme // the same with the other kind of key, chosen by the prefix of the key; or nil
}

// Spec returns the scheme as data, with its defaults filled in.
func (s *Scheme) Spec() SchemeSpec { return s.spec }

// SignedPart returns the part of a verified body that the signature covers: the body, or the JSON in its form.
func (s *Scheme) SignedPart(body []byte) []byte {
	if !s.spec.JSON {
		return body
	}
	signed, err := strictjson.Unwrap(body)
	if err != nil {
		return nil // did not verify
	}
	return signed
}

// IsAsymmetric reports whether signatures are verified with a public key, and not with a secret.
func (s *Scheme) IsAsymmetric() bool { return s.newHash == nil }

// Header returns the name of the header that holds the signature.
func (s *Scheme) Header() string { return s.spec.Header }

// Headers returns the names of all headers that decide whether a signature verifies.
func (s *Scheme) Headers() []string {
	headers := []string{s.spec.Header, s.tsHeader, s.idHeader}
	return slices.DeleteFunc(headers, func(name string) bool { return name == "" })
}

// draft is a scheme that is being compiled: its methods check the spec, and set what the methods of a [Scheme] only
// read.
type draft struct{ *Scheme }

// CompileScheme checks a scheme and makes it ready for use. Errors go to p, and then the scheme must not
// be used.
func CompileScheme(spec *SchemeSpec, p *diag.List) *Scheme {
	s := draft{&Scheme{spec: *spec, PayloadForm: spec.JSON}}
	s.spec.Header = field.CompileHeader(spec.Header, p.At("header"))
	if _, bearer := field.CutPrefix(spec.Value, "Bearer "); bearer && s.spec.Header == "Authorization" {
		p.At("value").Errorf("must not begin with Bearer, which marks a JWT or token")
	}
	s.compileHash(p)
	s.compileValue(p)
	s.signed = compileTemplate(spec.Signed, p.At("signed"))
	s.compileTime(p)
	s.compileFields(p)
	return s.Scheme
}

func (s draft) compileHash(p *diag.List) {
	s.spec.Hash = cmp.Or(s.spec.Hash, "sha256")
	s.spec.Encoding = cmp.Or(s.spec.Encoding, "hex")
	s.spec.Key.Encoding = cmp.Or(s.spec.Key.Encoding, "utf8")
	switch s.spec.Hash {
	case "sha256":
		s.newHash, s.sigSize = sha256.New, sha256.Size
	case "sha512":
		s.newHash, s.sigSize = sha512.New, sha512.Size
	case "ed25519":
		s.sigSize = ed25519.SignatureSize
		if s.spec.Key.Encoding == "utf8" {
			p.At("key", "encoding").Errorf("must be hex or base64 for ed25519")
		}
	case "sha1":
		s.newHash, s.sigSize = sha1.New, sha1.Size
		if !s.spec.SHA1 {
			p.At("hash").Errorf("sha1 is broken: it needs dangerously_sha1")
		}
		if fips140.Enforced() { // crypto/hmac would panic at the first delivery
			p.At("hash").Errorf("sha1 does not work with GODEBUG=fips140=only")
		}
	default:
		p.At("hash").Errorf("is not sha256, sha512 or ed25519")
	}
	if s.spec.SHA1 && s.spec.Hash != "sha1" {
		p.At("dangerously_sha1").Errorf("is set, but hash is not sha1")
	}
	if s.spec.Encoding != "hex" && s.spec.Encoding != "base64" {
		p.At("encoding").Errorf("is not hex or base64")
	}
	switch s.spec.Key.Encoding {
	case "utf8", "hex", "base64":
	default:
		p.At("key", "encoding").Errorf("is not utf8, base64 or hex")
	}
}

func (s draft) compileTime(p *diag.List) {
	covered := s.signed.coversHole("ts")
	if s.spec.TS == nil {
		if covered {
			p.At("ts").Errorf("is missing, but {ts} is signed")
		}
		return
	}
	ts := *s.spec.TS // a copy: the specification must not change
	s.spec.TS = &ts
	p = p.At("ts")
	inValue := strings.Contains(s.spec.Value, "{ts}")
	if !exactlyOne(ts.Header != "", ts.Body != "", inValue) {
		p.Errorf("must be in exactly one place: a header, the body, or {ts} in value")
	}
	if ts.Header != "" {
		ts.Header = field.CompileHeader(ts.Header, p.At("header"))
		s.tsHeader = ts.Header
	}
	s.tsPath = compileBodyPath(ts.Body, p.At("body"))
	if covered == (ts.Body != "") {
		p.Errorf("is not covered by the signature: signed needs {ts}, unless the time is in the body")
	}
	ts.Unit = cmp.Or(ts.Unit, "s")
	if ts.Unit != "s" && ts.Unit != "ms" {
		p.At("unit").Errorf("is not s or ms")
	}
	if ts.Tolerance == 0 {
		ts.Tolerance = 5 * time.Minute
	}
	if ts.Tolerance < 0 || ts.Tolerance > MaxTolerance {
		p.At("tolerance").Errorf("is not between 0 and 24h")
	}
}

func (s draft) compileFields(p *diag.List) {
	if id := compileField(s.spec.ID, p.At("id")); id != nil {
		s.spec.ID, s.idHeader = id, id.Header
		s.idPath = compileBodyPath(id.Body, p.At("id", "body"))
	}
	if s.signed.coversHole("id") != (s.idHeader != "") {
		p.At("id").Errorf("must be a header if {id} is signed, and must not be a header if {id} is not signed")
	}
	if event := compileField(s.spec.Event, p.At("event")); event != nil {
		s.spec.Event = event
		s.eventPath = compileBodyPath(event.Body, p.At("event", "body"))
	}
}

// compileField returns f with its header's name in canonical form.
func compileField(f *FieldSpec, p *diag.List) *FieldSpec {
	if f == nil {
		return nil
	}
	if (f.Header == "") == (f.Body == "") {
		p.Errorf("needs one of header and body")
		return nil
	}
	if f.Header == "" {
		return f
	}
	return &FieldSpec{Header: field.CompileHeader(f.Header, p.At("header"))}
}

// compileBodyPath parses a path into the body. An empty path stays empty.
func compileBodyPath(text string, p *diag.List) strictjson.Path {
	root := "body."
	if text == "" || text[0] == '[' {
		root = "body"
	}
	path, err := strictjson.ParsePath(root + text)
	if err != nil {
		p.Errorf("%v", err)
	}
	return path
}

// exactlyOne reports whether exactly one of the conditions holds.
func exactlyOne(conditions ...bool) bool {
	held := 0
	for _, holds := range conditions {
		if holds {
			held++
		}
	}
	return held == 1
}
