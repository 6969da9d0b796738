// Package auth identifies the caller that sent a delivery, and decides whether the delivery is fresh.
//
// [Compile] checks the callers of the configuration and reads their keys; [Callers.Authenticate] verifies the
// one credential that decides. A caller has credentials of five kinds: hmac ([sallyport/auth/webhook]),
// signature ([sallyport/auth/httpsig]), jwt ([sallyport/auth/jwt]), token and mtls. Those packages know how a
// credential is read and verified; this one knows which caller has the key, and by which names a repeated delivery
// is recognised.
//
// Authentication is a function of the delivery and of the compiled callers: it reads no clock, opens no
// connection and keeps no state. Two things it depends on change between reloads: the keys that package keyset
// has fetched, and the SPIFFE bundles that package certs has. [AwaitKey] alone waits.
//
// It fails closed: a credential that is malformed, wrong, stale or revoked ends the search, and a second,
// weaker credential is not tried. The [Refusal] is for the operator. The sender gets the same answer for every
// reason, and package handlers writes it.
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
	"sallyport/auth/webhook"
)

// Delivery is one request as authentication sees it.
type Delivery struct {
	Method    string
	Authority string   // host, or host:port, that the request is for
	URL       *url.URL // path and query of the target, as they came
	Header    http.Header
	Body      []byte               // whole, as it came, because that is signed; not kept after Authenticate
	TLS       *tls.ConnectionState // of this request, so resumed sessions are covered
	Address   netip.Addr           // of the client; the zero value is in no network
	Now       time.Time
}

// signedRequest returns what a message signature can cover.
func (d *Delivery) signedRequest() *httpsig.Request {
	return &httpsig.Request{Method: d.Method, Authority: d.Authority, URL: d.URL, Header: d.Header, Body: d.Body}
}

// Identity is what a verified credential proves. It has many fields, because each kind of credential proves other
// things.
type Identity struct {
	Caller string
	Kind   string // hmac, signature, jwt, mtls or token
	Key    string // id of the key that verified; for mtls the matched name or fingerprint

	// Replay names this delivery among all of all callers: a digest of the signed
	// id, else of what was signed, or of the token. Empty where repetition is
	// legitimate. Aliases are further names of it: a delivery is a replay if an
	// earlier one had one of its names.
	Replay  string
	Aliases []string
	// Until is when these names may be forgotten: a replay no longer verifies
	// under any valid configuration, and the sender no longer retries. With zero
	// the store decides how long it keeps them.
	Until time.Time
	// Named is set where the sender chose the name in a header: an id, a nonce or an
	// Idempotency-Key. The same name with another BodyDigest is another delivery,
	// which must not pass for a repetition.
	Named bool
	// OneBody is set where Replay does not cover the body (a JWT): the same
	// Replay with another BodyDigest is an attack, not a repetition.
	OneBody bool
	// EachRequest is set instead of OneBody where a token is valid once for each hook and body.
	EachRequest bool
	// UntilSuccess is set where a delivery may be repeated after its run did not succeed.
	UntilSuccess bool
	BodyDigest   [32]byte // SHA-256 of the body, or of the JSON in its form if that is what the sender signs
	// NeverStale is set for an HMAC without a time: the signature stays valid
	// without end, for every request with the same body.
	NeverStale bool

	// PayloadForm is set if the sender sends JSON, or a form with the JSON as its only field, payload.
	PayloadForm bool

	Event string // the sender's word for this kind of delivery, if any; not signed if it is a header
	// EventUnreadable says that the delivery has an event name that is not usable: sent twice, or not text.
	EventUnreadable bool
	Claims          map[string]any // of a verified JWT, as strictjson decodes them

	// Handshake is the answer that the sender wants to this delivery if it only tests or registers its webhook.
	Handshake *webhook.Handshake
}

// Reason says why a delivery was refused, in the operator's words.
type Reason string

// The reasons.
const (
	Absent    Reason = "absent"    // no credential that any caller could have sent
	Malformed Reason = "malformed" // present, but not in the form of its kind
	Wrong     Reason = "wrong"     // well formed, and verified by no key
	Stale     Reason = "stale"     // verified, but outside its time
	Revoked   Reason = "revoked"   // verified, but revoked by its CA
	Misplaced Reason = "misplaced" // verified, but sent from outside the networks of its caller
)

// Refusal is the error of Authenticate. It is for the log, never for the sender.
type Refusal struct {
	Reason Reason
	Kind   string // of the credential that is present
	Caller string // set only if the credential verified, or names its caller
	Key    string
	Detail string // no secret, and of the request only short printable text

	keys *keyset.Set // may have a key for the credential after the next fetch
}

// AwaitKey reports whether to authenticate a delivery again that was refused with err. If a key was missing
// that its issuer may have published since, AwaitKey waits for the issuer's keys, for at most 25 seconds. Few
// deliveries of one site may wait at the same time.
func AwaitKey(ctx context.Context, err error, site netip.Addr) bool {
	var r *Refusal
	return errors.As(err, &r) && r.keys != nil && r.keys.Await(ctx, site)
}

func (r *Refusal) Error() string {
	return string(r.Reason) + " credential: " + r.Detail
}
