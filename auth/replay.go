package auth

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"slices"
	"time"

	"sallyport/auth/httpsig"
	"sallyport/auth/webhook"
)

// retryWindow is how long a sender may repeat a delivery with the same id and a new timestamp. The longest of
// the known senders is Stripe with three days; Svix stops after 28 hours.
const retryWindow = 72 * time.Hour

// What a repeated delivery does, as the file writes it.
const (
	replayCheck        = "check"         // it is answered with the run of the first
	replayAllow        = "allow"         // it starts another run
	replayUntilSuccess = "until_success" // check, but it starts another run after one that did not succeed
	replayRequest      = "request"       // check, but a token may be used once for each hook and body
)

// replayRule returns what a repeated delivery by this kind of credential does.
func (c *caller) replayRule(kind string) string {
	switch {
	case c.replay != "":
		return c.replay
	case kind == "hmac" && c.forge:
		return replayUntilSuccess
	case kind == "jwt" && c.jwt.eachRequest:
		return replayRequest
	case kind == "mtls" || kind == "token":
		return replayAllow
	}
	return replayCheck
}

// recognizesReplays reports whether repeated deliveries by the credential of id are recognized, and notes in id when
// they may start another run.
func (c *caller) recognizesReplays(id *Identity) bool {
	rule := c.replayRule(id.Kind)
	id.UntilSuccess = rule == replayUntilSuccess
	return rule != replayAllow
}

// A repeated delivery is recognised by its names. They must survive every change of the configuration after
// which the delivery would be accepted again:
//
//   - The caller's name recognises a retry that is signed with a new key.
//   - Key material recognises a retry, and an exact replay, after the caller or the key was renamed.
//   - The signatures recognise an exact replay with another of the signatures of the delivery, also after the
//     caller and its keys have changed.
//
// Names are kept for the longest tolerance that a file can set, not for the one that it sets now.

// nameHMACDelivery names the delivery by its id, if the signature covers one: a retry with a new timestamp is
// then the same delivery. Otherwise it is named by what was signed: a sender that rotates keys sends several
// signatures of one message, and an attacker could leave out some of them.
func (c *caller) nameHMACDelivery(id *Identity, sig *webhook.Signature, m *webhook.Message) {
	id.Named = sig.ID != ""
	names := []string{digestParts("hmac signed", c.name, sig.Timestamp, string(id.BodyDigest[:]))}
	keep := webhook.MaxTolerance
	if m.ID != "" {
		names, keep = []string{digestParts("hmac id", c.name, m.ID)}, max(webhook.MaxTolerance, retryWindow)
		for i := range c.hmac {
			names = append(names, digestParts("hmac id of key", string(c.hmac[i].key.Bytes), m.ID))
		}
	}
	for _, sum := range sig.Sums {
		names = append(names, digestParts("hmac signature", string(sum)))
	}
	id.setReplayNames(names)
	if !m.Time.IsZero() {
		id.Until = m.Time.Add(keep)
	}
}

// nameSignedRequest names a request by its nonce, or without a nonce by all that is signed.
func (k *signatureKey) nameSignedRequest(id *Identity, m *httpsig.Message) {
	key := string(keyMaterial(k.key.Material))
	id.Replay, id.Until = digestParts("signature signed", key, string(m.Base)), m.Created.Add(httpsig.MaxAge)
	if m.Nonce != "" { // a retry with a new time is the same delivery
		id.Replay, id.Until = digestParts("signature nonce", key, m.Nonce),
			m.Created.Add(max(httpsig.MaxAge, retryWindow))
		id.Named = true
	}
}

// nameUnsignedDelivery names a delivery by a credential that does not cover the body. The names have its
// Idempotency-Key, or else its body, with the caller and with each of the caller's tokens or certificate names.
func (c *caller) nameUnsignedDelivery(id *Identity, d *Delivery) {
	kind, what := id.Kind+" body", string(id.BodyDigest[:])
	if keys := d.Header["Idempotency-Key"]; len(keys) == 1 && keys[0] != "" {
		kind, what, id.Named = id.Kind+" idempotency key", keys[0], true
	}
	names := []string{digestParts(kind, c.name, what)}
	if id.Kind == "token" {
		for i := range c.tokens.keys {
			names = append(names, digestParts(kind+" of token", string(c.tokens.keys[i].digest[:]), what))
		}
	} else {
		for _, name := range c.mtls.spec.certificateNames() {
			names = append(names, digestParts(kind+" of certificate", name.kind, name.text, what))
		}
	}
	id.setReplayNames(names)
}

// setReplayNames sets the first name as Replay and the others as Aliases, without duplicates.
func (id *Identity) setReplayNames(names []string) {
	others := map[string]bool{}
	for _, name := range names[1:] {
		others[name] = true
	}
	id.Replay, id.Aliases = names[0], slices.Sorted(maps.Keys(others))
}

// digestParts hashes each part with its length, so that no two lists of parts have the same digest.
func digestParts(parts ...string) string {
	h := sha256.New()
	var size [8]byte
	for _, part := range parts {
		binary.BigEndian.PutUint64(size[:], uint64(len(part)))
		h.Write(size[:])
		h.Write([]byte(part))
	}
	return hex.EncodeToString(h.Sum(nil))
}
