package auth

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strings"
	"time"

	"sallyport/internal/diag"
	"sallyport/internal/strictjson"
)

const (
	maxEntries = 16 // of a signature header
	maxField   = 256

	// foreignWork bounds, in bytes hashed per delivery, the search among
	// callers that may not call the hook anyway. Beyond it they are strangers
	// (401 instead of 403); without it one forged delivery would cost a pass
	// over the body for every key of the installation.
	foreignWork = 64 << 20
)

type hmacKey struct {
	keyInfo
	scheme *Scheme
	bytes  []byte
}

func compileHMAC(spec *HMACSpec, src Sources, p *diag.List) (keys []hmacKey) {
	scheme := hmacScheme(spec, p)
	if len(spec.Keys) == 0 {
		p.At("keys").Errorf("needs at least one key")
	}
	eachKey(spec.Keys, p, func(k *KeySpec, info keyInfo, p *diag.List) {
		text, ok := src.secretOrPublic(scheme, k, p)
		if !ok || scheme == nil {
			return
		}
		s, key, err := scheme.key(text)
		if err != nil {
			p.Errorf("%v", err)
			return
		}
		if s.newHash != nil {
			info.secret = sha256.Sum256(text)
		}
		if s.newHash == nil || checkLength(len(key), p) {
			keys = append(keys, hmacKey{info, s, key})
		}
	})
	return keys
}

// hmacScheme returns the scheme that spec names or describes, nil if it is no good.
func hmacScheme(spec *HMACSpec, p *diag.List) *Scheme {
	if spec.Scheme == "" {
		var own diag.List
		s := CompileScheme(&spec.SchemeSpec, &own)
		for _, x := range own.All() {
			p.At(x.Path...).Errorf("%s", x.Text)
		}
		if own.Bad() {
			return nil
		}
		return s
	}
	if spec.SchemeSpec != (SchemeSpec{}) {
		p.At("scheme").Errorf("is a preset, which takes no other setting but keys")
	}
	s, ok := Preset(spec.Scheme)
	if !ok {
		p.At("scheme").Errorf("%q is none of %s", spec.Scheme, strings.Join(Presets(), ", "))
		return nil
	}
	return s
}

// secretOrPublic reads a key: only what verifies without being secret may lie
// in a file that others may read.
func (s Sources) secretOrPublic(scheme *Scheme, k *KeySpec, p *diag.List) ([]byte, bool) {
	if scheme != nil && scheme.newHash == nil && k.Alg == "" {
		return s.load(k, publicMode, p)
	}
	return s.secret(k, p)
}

// key turns the text of a verifying key into its bytes, and picks the half of
// the scheme that it is for.
func (s *Scheme) key(text []byte) (*Scheme, []byte, error) {
	if s.alt != nil && bytes.HasPrefix(text, []byte(s.alt.spec.Key.Prefix)) {
		return s.alt.key(text)
	}
	key, err := decodeKey(s.spec.Key.Encoding, bytes.TrimPrefix(text, []byte(s.spec.Key.Prefix)))
	if err != nil {
		return nil, nil, err
	}
	if s.newHash == nil && len(key) != ed25519.PublicKeySize {
		return nil, nil, fmt.Errorf("is %d bytes long, and an Ed25519 public key has %d", len(key), ed25519.PublicKeySize)
	}
	return s, key, nil
}

// decodeKey keeps the decoders' errors to itself, for they quote the text.
func decodeKey(encoding string, text []byte) ([]byte, error) {
	if encoding == "utf8" {
		return text, nil
	}
	key, err := decode(encoding, string(text))
	if err != nil {
		return nil, errors.New("is not " + encoding)
	}
	return key, nil
}

// decode is strict: one spelling per value, but for the case of hex digits.
func decode(encoding, text string) ([]byte, error) {
	if encoding == "hex" {
		return hex.DecodeString(text)
	}
	if strings.ContainsAny(text, "\r\n") { // the decoder skips them
		return nil, errors.New("line break in base64")
	}
	return base64.StdEncoding.Strict().DecodeString(text)
}

// signature is what the headers of a delivery hold for one scheme.
type signature struct {
	sigs   [][]byte
	ts, id string
	at     time.Time
}

// byHMAC tries every scheme that is on the delivery: several may be, for Gitea
// also sends GitHub's and Gogs' headers.
func (c *Callers) byHMAC(d *Delivery, hook []string) (*Identity, error) {
	passes := 0
	id, err := c.tryHMAC(d, hook, &passes)
	return id, withWork(err, cost{passes: passes}.bytes(len(d.Body)))
}

func (c *Callers) tryHMAC(d *Delivery, hook []string, passes *int) (*Identity, error) {
	refusal := errAbsent
	work := 0
	for caller, own := range c.candidates(hook) {
		for i := range caller.hmac {
			k := &caller.hmac[i]
			sig, err := k.scheme.read(d)
			if err != nil {
				if errors.Is(refusal, errAbsent) {
					refusal = err
				}
				continue
			}
			if !own {
				if work += len(d.Body) + passWork; work > foreignWork {
					return nil, refuse(Wrong, "hmac", "the signature verifies with no key that was tried")
				}
			}
			*passes++
			if k.scheme.verifies(k.bytes, sig, d.Body) {
				if len(d.Body) == 0 && len(hook) > 0 {
					return nil, &Refusal{Reason: Malformed, Scheme: "hmac", Caller: caller.name, Key: k.id, Detail: "the body is empty, so the signature is that of any request for runs"}
				}
				return caller.signed(k, sig, d)
			}
			refusal = refuse(Wrong, "hmac", "the signature verifies with no key")
		}
	}
	return nil, refusal
}

// read returns what the delivery holds for this scheme: errAbsent, or a refusal
// if it is not of its form.
func (s *Scheme) read(d *Delivery) (*signature, error) {
	value := d.Header.Get(s.spec.Header)
	if len(d.Header[s.spec.Header]) == 0 {
		return nil, errAbsent
	}
	sig, err := s.parse(value)
	if err != nil {
		// That header is shared with JWTs and tokens, which look different.
		if s.spec.Header == "Authorization" {
			return nil, errAbsent
		}
		return nil, refuse(Malformed, "hmac", "the header %s %v", s.spec.Header, err)
	}
	if s.tsHeader != "" {
		sig.ts = d.Header.Get(s.tsHeader)
	}
	if s.covers("ts") {
		if sig.at, err = readUnix(sig.ts, s.spec.TS.Unit); err != nil {
			return nil, refuse(Malformed, "hmac", "the timestamp %v", err)
		}
	}
	if s.idHeader != "" {
		if sig.id = d.Header.Get(s.idHeader); !s.goodID(sig.id) {
			return nil, refuse(Malformed, "hmac", "the header %s is missing or not an id", s.idHeader)
		}
	}
	if s.spec.JSON && !isJSON(d.Header["Content-Type"]) {
		return nil, refuse(Malformed, "hmac", "the body is not declared as JSON, which is what is signed")
	}
	return sig, nil
}

// parse takes the value of the signature header apart.
func (s *Scheme) parse(value string) (*signature, error) {
	items := []string{value}
	if s.spec.List != "" {
		items = strings.SplitN(value, s.spec.List, maxEntries+1)
	}
	if len(items) > maxEntries {
		return nil, errors.New("has too many entries")
	}
	sig := &signature{}
	for _, item := range items {
		for _, e := range s.entries {
			text, ok := e.cut(item, s.spec.List != "")
			switch {
			case !ok:
			case e.hole == "ts" && sig.ts != "":
				return nil, errors.New("has two timestamps")
			case e.hole == "ts":
				sig.ts = text
			default:
				b, err := decode(s.spec.Encoding, text)
				if err != nil || len(b) != s.sigSize {
					return nil, errors.New("holds a signature that is not of the scheme's length and encoding")
				}
				sig.sigs = append(sig.sigs, b)
			}
		}
	}
	if len(sig.sigs) == 0 {
		return nil, errors.New("holds no signature of this scheme")
	}
	return sig, nil
}

func (e entry) cut(item string, inList bool) (string, bool) {
	if inList {
		item = strings.Trim(item, " \t") // RFC 9110 5.6.1
	}
	text, ok := strings.CutPrefix(item, e.before)
	if !ok {
		return "", false
	}
	return strings.CutSuffix(text, e.after)
}

// goodID refuses an id that does not end where the literal behind it first
// stands in what is signed: "a.1" and "1" would sign as "a" and "1.1" do, and,
// where the literal is "::", "a:" and "1" as "a" and ":1".
func (s *Scheme) goodID(id string) bool {
	if !printable(id) {
		return false
	}
	for i, x := range s.signed {
		if x.hole && x.text == "id" && strings.Index(id+s.signed[i+1].text, s.signed[i+1].text) != len(id) {
			return false
		}
	}
	return true
}

// printable tells whether s is short, not empty, and visible ASCII.
func printable(s string) bool {
	return s != "" && len(s) <= maxField && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

func isJSON(values []string) bool {
	if len(values) != 1 {
		return false
	}
	kind, _, err := mime.ParseMediaType(values[0])
	return err == nil && (kind == "application/json" || strings.HasPrefix(kind, "application/") && strings.HasSuffix(kind, "+json"))
}

// message is what is signed, in pieces so that the body is not copied.
func (s *Scheme) message(sig *signature, body []byte) (parts [][]byte) {
	for _, x := range s.signed {
		switch {
		case !x.hole:
			parts = append(parts, []byte(x.text))
		case x.text == "body":
			parts = append(parts, body)
		case x.text == "ts":
			parts = append(parts, []byte(sig.ts))
		case x.text == "id":
			parts = append(parts, []byte(sig.id))
		}
	}
	return parts
}

func (s *Scheme) mac(key []byte, sig *signature, body []byte) []byte {
	mac := hmac.New(s.newHash, key)
	for _, part := range s.message(sig, body) {
		mac.Write(part)
	}
	return mac.Sum(nil)
}

// verifies compares in constant time, and with every entry whatever the others gave.
func (s *Scheme) verifies(key []byte, sig *signature, body []byte) bool {
	ok := false
	if s.newHash == nil {
		message := bytes.Join(s.message(sig, body), nil)
		for _, b := range sig.sigs {
			ok = ed25519.Verify(key, message, b) || ok
		}
		return ok
	}
	want := s.mac(key, sig, body)
	for _, b := range sig.sigs {
		ok = hmac.Equal(want, b) || ok
	}
	return ok
}

// signed is what a verified signature proves.
func (c *caller) signed(k *hmacKey, sig *signature, d *Delivery) (*Identity, error) {
	s := k.scheme
	r := &Refusal{Scheme: "hmac", Caller: c.name, Key: k.id}
	if r.Detail = k.outside(d.Now); r.Detail != "" {
		r.Reason = Wrong
		return nil, r
	}
	fields := s.bodyFields(d.Body)
	if ts := s.spec.TS; ts != nil {
		if ts.Body != "" {
			at, err := readUnix(textAt(fields, ts.Body), ts.Unit)
			if err != nil {
				r.Reason, r.Detail = Malformed, "the timestamp in the body "+err.Error()
				return nil, r
			}
			sig.at = at
		}
		// Both ways: a timestamp of tomorrow would verify for a day.
		if !isWithin(sig.at, d.Now, ts.Tolerance, ts.Tolerance) {
			r.Reason, r.Detail = Stale, signedAt(sig.at, d.Now)
			return nil, r
		}
	}
	id := &Identity{Caller: c.name, Scheme: "hmac", Key: k.id, BodyDigest: sha256.Sum256(d.Body), Lasting: s.spec.TS == nil}
	id.Event = s.event(d.Header, fields)
	if c.replayCheck("hmac") {
		c.nameHMAC(id, s, sig, fields)
	}
	return id, nil
}

// bodyFields decodes the body if the scheme looks into it; nil if it is not JSON.
func (s *Scheme) bodyFields(body []byte) any {
	looks := s.spec.TS != nil && s.spec.TS.Body != ""
	for _, f := range []*FieldSpec{s.spec.ID, s.spec.Event} {
		looks = looks || f != nil && f.Body != ""
	}
	if !looks {
		return nil
	}
	v, err := strictjson.Decode(body)
	if err != nil {
		return nil
	}
	return v
}

// textAt returns the string or number at a dotted path, or nothing.
func textAt(v any, path string) string {
	got, _ := strictjson.Lookup(v, strings.Split(path, ".")...)
	switch x := got.(type) {
	case string:
		return x
	case json.Number:
		return x.String()
	}
	return ""
}

// event is the sender's word for the kind of delivery. In a header it is not signed.
func (s *Scheme) event(h http.Header, fields any) (event string) {
	switch f := s.spec.Event; {
	case f == nil:
	case f.Body != "":
		event = textAt(fields, f.Body)
	case len(h[f.Header]) == 1:
		event = h.Get(f.Header)
	}
	if !printable(event) {
		return ""
	}
	return event
}
