// Package auth tells who sent a delivery and whether it is fresh. Everything
// in it is a pure function of the delivery and of the compiled callers: it
// reads no clock, opens no connection and keeps no state, so one row of a test
// is one fact. (Keys of issuers are what package keyset has of them by then,
// and what certs.Clients believes by SPIFFE is the Workload API's; Await is
// apart.) What a refused sender is told is decided elsewhere and is always the
// same; the Refusal is for the operator.
package auth

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"sallyport/auth/httpsig"
	"sallyport/auth/jwt/keyset"
)

// Delivery is one request as authentication sees it.
type Delivery struct {
	Method    string
	Authority string   // host, or host:port, that the request is for
	URL       *url.URL // path and query of the target, as they came
	Header    http.Header
	Body      []byte               // whole and raw: what is signed is what arrived. It is gone after Authenticate
	TLS       *tls.ConnectionState // of this request, so resumed sessions are covered
	Now       time.Time
}

func (d *Delivery) signedRequest() *httpsig.Request {
	return &httpsig.Request{Method: d.Method, Authority: d.Authority, URL: d.URL, Header: d.Header, Body: d.Body}
}

// Identity is what a verified credential proves.
type Identity struct {
	Caller string
	Kind   string // hmac, signature, jwt, mtls or token
	Key    string // id of the key that verified; for mtls the matched name or fingerprint

	// Replay names this delivery among all of all callers: a digest of the signed
	// id, else of what was signed, or of the token. Empty where repetition is
	// legitimate. Aliases are further names of it: a delivery is a replay if one of
	// its names is that of an earlier one.
	Replay  string
	Aliases []string
	// Until is when these names may be forgotten, because a replay no longer
	// verifies under any permitted file and the sender no longer retries; zero means
	// never, of itself: then the record decides how long it keeps them.
	Until time.Time
	// Named is set where the sender chose the name in a header: an id, a nonce or an
	// Idempotency-Key. The same name with another BodyDigest is another delivery,
	// which must not pass for a repetition.
	Named bool
	// OneBody is set where Replay does not cover the body (a JWT): the same
	// Replay with another BodyDigest is an attack, not a repetition.
	OneBody    bool
	BodyDigest [32]byte // SHA-256 of the body
	// Lasting is set where what was sent is good for ever, and for every request
	// with the same body: an HMAC without a time.
	NeverStale bool

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
	Revoked   Reason = "revoked"   // verified, but taken back by its CA
)

// Refusal is the error of Authenticate. It is for the log, never for the sender.
type Refusal struct {
	Reason Reason
	Kind   string // of the credential that was present
	Caller string // set only where the credential verified, or names its caller itself
	Key    string
	Detail string // no secret and no bytes of the request but what is printable and short

	keys  *keyset.Set // that may have a key for the credential when it is fetched anew
	spent int         // that it took to find out, in bytes hashed
}

// AwaitKey reports whether a delivery that was refused with err is worth judging
// once more: if a key was missing that its issuer may have published since, it waits
// for the issuer's keys, 25 seconds at most. Of one site, few may wait at once.
func AwaitKey(ctx context.Context, err error, site netip.Addr) bool {
	var r *Refusal
	return errors.As(err, &r) && r.keys != nil && r.keys.Await(ctx, site)
}

func (r *Refusal) Error() string {
	return string(r.Reason) + " credential: " + r.Detail
}
