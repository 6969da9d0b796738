package webhook

import "time"

// SchemeSpec is a signature scheme as data: what a sender puts on the wire.
type SchemeSpec struct {
	Header   string  `yaml:"header"` // the header that holds the signature
	Value    string  `yaml:"value"`  // its layout: "{sig}", "sha256={sig}", "t={ts},v1={sig}"
	Hash     string  `yaml:"hash"`   // sha256 (default), sha512, ed25519; sha1 only with dangerously_sha1
	SHA1     bool    `yaml:"dangerously_sha1"`
	Encoding string  `yaml:"encoding"` // hex (default) or base64
	Signed   string  `yaml:"signed"`   // literals with {body} (mandatory), {ts}, {id}
	Key      KeyForm `yaml:"key"`
	// List separates entries of the header and of value. One {sig} that verifies is enough; unknown entries
	// are ignored.
	List  string     `yaml:"list"`
	TS    *TimeSpec  `yaml:"ts"`
	ID    *FieldSpec `yaml:"id"`
	Event *FieldSpec `yaml:"event"`
	JSON  bool       `yaml:"json"` // the JSON is signed, also if it is sent as the only field of a form, payload
}

// KeyForm says how the text of a key becomes its bytes.
type KeyForm struct {
	Encoding string `yaml:"encoding"` // utf8 (default), base64 or hex
	Prefix   string `yaml:"prefix"`   // removed first, such as "whsec_"
}

// TimeSpec says where the time of signing is. With neither header nor body it is the {ts} in the layout of
// the signature header.
type TimeSpec struct {
	Header    string        `yaml:"header"`
	Body      string        `yaml:"body"`      // path into a JSON body
	Unit      string        `yaml:"unit"`      // s (default) or ms
	Tolerance time.Duration `yaml:"tolerance"` // default 5m
}

// FieldSpec says where a value is: in a header, or in the JSON body.
type FieldSpec struct {
	Header string `yaml:"header"`
	Body   string `yaml:"body"` // path
}
