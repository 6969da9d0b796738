// Package auth tells who sent a delivery and whether it is fresh. Everything
// in it is a pure function of the delivery and of the compiled callers: it
// reads no clock, opens no connection and keeps no state, so one row of a test
// is one fact. What a refused sender is told is decided elsewhere and is always
// the same; the Refusal is for the operator.
package auth

import (
	"crypto/tls"
	"net/http"
	"time"
)

// Delivery is one request as authentication sees it.
type Delivery struct {
	Header http.Header
	Body   []byte               // whole and raw: what is signed is what arrived
	TLS    *tls.ConnectionState // of this request, so resumed sessions are covered
	Now    time.Time
}

// Identity is what a verified credential proves.
type Identity struct {
	Caller string
	Scheme string // hmac, jwt, mtls or token
	Key    string // id of the key that verified; for mtls the matched name

	// Replay identifies this delivery among all of all callers: a digest of the
	// signed id, else of what was signed, or of the token. Empty where
	// repetition is legitimate.
	Replay string
	// Until is when this Replay may be forgotten, because a replay no longer
	// verifies by itself and the sender no longer retries; zero means never.
	Until time.Time
	// OneBody is set where Replay does not cover the body (a JWT): the same
	// Replay with another BodyDigest is an attack, not a repetition.
	OneBody    bool
	BodyDigest [32]byte // SHA-256 of the body

	Event  string         // what the sender calls this kind of delivery, if it says; not signed if it is a header
	Claims map[string]any // of a verified JWT, as strictjson decodes them
}

// Reason says why a delivery was refused, in the operator's words.
type Reason string

// The reasons.
const (
	Absent    Reason = "absent"    // no credential that any caller could have sent
	Malformed Reason = "malformed" // present, but not of the form its scheme has
	Wrong     Reason = "wrong"     // well formed, and verified by no key
	Stale     Reason = "stale"     // verified, but outside its time
)

// Refusal is the error of Authenticate. It is for the log, never for the sender.
type Refusal struct {
	Reason Reason
	Scheme string // of the credential that was present
	Caller string // set only where the credential verified, or names its caller itself
	Key    string
	Detail string // no secret and no bytes of the request but what is printable and short
}

func (r *Refusal) Error() string {
	return string(r.Reason) + " credential: " + r.Detail
}
