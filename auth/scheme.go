package auth

import (
	"crypto/ed25519"
	"crypto/fips140"
	"crypto/sha1" //nolint:gosec // only by an option whose name says that it is dangerous
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"
	"net/http"
	"strings"
	"time"

	"sallyport/internal/diag"
)

// maxTolerance bounds how far from now a signed time may be.
const maxTolerance = 24 * time.Hour

// Scheme is a compiled SchemeSpec.
type Scheme struct {
	Name        string // of the preset; empty for a scheme of one's own
	Unconfirmed bool   // only third parties document it; nobody has run it against the sender

	spec     SchemeSpec // with its defaults filled in, and header names canonical
	newHash  func() hash.Hash
	sigSize  int
	entries  []entry
	signed   []piece
	tsHeader string // where {ts} stands if not in the signature header
	idHeader string // where {id} stands
	alt      *Scheme
}

// entry is one item of a signature header: a hole between literals.
type entry struct{ before, hole, after string }

// piece is a literal of what is signed, or a hole: {body}, {ts} or {id}.
type piece struct {
	text string
	hole bool
}

// Spec returns the scheme as data, with its defaults filled in.
func (s *Scheme) Spec() SchemeSpec { return s.spec }

// CompileScheme checks a scheme and makes it ready for use. What is wrong goes
// to p, and then the scheme must not be used.
func CompileScheme(spec *SchemeSpec, p *diag.List) *Scheme {
	s := &Scheme{spec: *spec}
	s.spec.Header = headerName(spec.Header, p.At("header"))
	if strings.EqualFold(s.spec.Header, "Authorization") && isBearer(spec.Value) {
		p.At("value").Errorf("begins with Bearer, which tells a JWT or a token")
	}
	s.compileHash(p)
	s.compileValue(p)
	s.compileSigned(p)
	s.compileTime(p)
	s.compileFields(p)
	return s
}

func (s *Scheme) compileHash(p *diag.List) {
	s.spec.Hash = orDefault(s.spec.Hash, "sha256")
	s.spec.Encoding = orDefault(s.spec.Encoding, "hex")
	s.spec.Key.Encoding = orDefault(s.spec.Key.Encoding, "utf8")
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
			p.At("hash").Errorf("sha1 is not there with GODEBUG=fips140=only")
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

// compileValue takes the layout of the signature header apart.
func (s *Scheme) compileValue(p *diag.List) {
	s.spec.Value = orDefault(s.spec.Value, "{sig}")
	items := []string{s.spec.Value}
	if s.spec.List != "" {
		if len(s.spec.List) != 1 || isTokenChar(s.spec.List[0]) {
			p.At("list").Errorf("is not one separator, such as a comma or a space")
			return
		}
		items = strings.Split(s.spec.Value, s.spec.List)
	}
	holes := map[string]int{}
	for _, item := range items {
		before, rest, ok := strings.Cut(item, "{")
		hole, after, closed := strings.Cut(rest, "}")
		if !ok || !closed || strings.ContainsAny(before+after, "{}") || hole != "sig" && hole != "ts" {
			p.At("value").Errorf("each entry needs one of {sig} and {ts}; several entries need list")
			return
		}
		holes[hole]++
		s.entries = append(s.entries, entry{before, hole, after})
	}
	if holes["sig"] != 1 || holes["ts"] > 1 {
		p.At("value").Errorf("needs {sig} once, and {ts} at most once")
	}
	if holes["ts"] == 1 && s.spec.TS == nil {
		s.spec.TS = &TimeSpec{}
	}
}

// compileSigned takes apart what the signature covers.
func (s *Scheme) compileSigned(p *diag.List) {
	p = p.At("signed")
	count := map[string]int{}
	for rest := s.spec.Signed; rest != ""; {
		literal, more, found := strings.Cut(rest, "{")
		if literal != "" {
			s.signed = append(s.signed, piece{text: literal})
		}
		if !found {
			break
		}
		hole, after, closed := strings.Cut(more, "}")
		if !closed || hole != "body" && hole != "ts" && hole != "id" {
			p.Errorf("has a hole that is not {body}, {ts} or {id}")
			return
		}
		if text := ambiguous(s.signed, count["body"] > 0, hole, after); text != "" {
			p.Errorf("%s, so bytes could move between them under the same signature", text)
		}
		count[hole]++
		s.signed = append(s.signed, piece{text: hole, hole: true})
		rest = after
	}
	if count["body"] != 1 || count["ts"] > 1 || count["id"] > 1 {
		p.Errorf("needs {body} once, and {ts} and {id} at most once")
	}
}

// ambiguous says why it would not be clear where a hole ends, or nothing. An id
// runs up to the next literal, a time has a fixed length, and the body takes what
// is left.
func ambiguous(before []piece, body bool, hole, after string) string {
	if hole == "id" && (after == "" || after[0] == '{') {
		return "has {id} with no literal after it"
	}
	if hole == "id" && body {
		return "has {id} after {body}"
	}
	n := len(before)
	if n == 0 || !before[n-1].hole || before[n-1].text == "id" || before[n-1].text+hole == "tsbody" {
		return ""
	}
	return fmt.Sprintf("has nothing between {%s} and {%s}", before[n-1].text, hole)
}

func (s *Scheme) compileTime(p *diag.List) {
	covered := s.covers("ts")
	if s.spec.TS == nil {
		if covered {
			p.At("ts").Errorf("is missing, but {ts} is signed")
		}
		return
	}
	ts := *s.spec.TS // a copy: the specification stays as it was
	s.spec.TS = &ts
	p = p.At("ts")
	inValue := strings.Contains(s.spec.Value, "{ts}")
	if sources := btoi(ts.Header != "") + btoi(ts.Body != "") + btoi(inValue); sources != 1 {
		p.Errorf("must stand in one place: a header, the body, or {ts} in value")
	}
	if ts.Header != "" {
		ts.Header = headerName(ts.Header, p.At("header"))
		s.tsHeader = ts.Header
	}
	if covered == (ts.Body != "") {
		p.Errorf("is not covered by the signature: signed needs {ts}, unless it stands in the body")
	}
	ts.Unit = orDefault(ts.Unit, "s")
	if ts.Unit != "s" && ts.Unit != "ms" {
		p.At("unit").Errorf("is not s or ms")
	}
	if ts.Tolerance == 0 {
		ts.Tolerance = 5 * time.Minute
	}
	if ts.Tolerance < 0 || ts.Tolerance > maxTolerance {
		p.At("tolerance").Errorf("is not between 0 and 24h")
	}
}

func (s *Scheme) compileFields(p *diag.List) {
	if id := oneField(s.spec.ID, p.At("id")); id != nil {
		s.spec.ID, s.idHeader = id, id.Header
	}
	if s.covers("id") != (s.idHeader != "") {
		p.At("id").Errorf("must be a header if {id} is signed, and is worth nothing as a header that is not signed")
	}
	if event := oneField(s.spec.Event, p.At("event")); event != nil {
		s.spec.Event = event
	}
}

func (s *Scheme) covers(hole string) bool {
	for _, x := range s.signed {
		if x.hole && x.text == hole {
			return true
		}
	}
	return false
}

// oneField returns f with its header's name in canonical form.
func oneField(f *FieldSpec, p *diag.List) *FieldSpec {
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
	return &FieldSpec{Header: headerName(f.Header, p.At("header"))}
}

// headerName returns the canonical form of a field name (RFC 9110 5.1).
func headerName(name string, p *diag.List) string {
	if name == "" {
		p.Errorf("is missing")
	}
	for i := range len(name) {
		if !isTokenChar(name[i]) {
			p.Errorf("is not the name of a header")
			break
		}
	}
	return http.CanonicalHeaderKey(name)
}

func isTokenChar(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

func orDefault(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
