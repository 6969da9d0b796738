package webhook

import (
	"crypto/hmac"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"

	"sallyport/internal/strictjson"
)

// Handshake is the answer to a verified delivery with which a sender tests or registers its webhook. Such a delivery
// is not meant to start anything.
type Handshake struct {
	Event  string // the sender's word for it
	Status int
	Answer any    // to encode as JSON; nil for an answer without a body
	Defect string // what is wrong with the delivery, if it cannot be answered
}

// handshake is an event of a preset that is a handshake.
type handshake struct {
	event string
	// fill completes the answer, and reports whether the delivery is a handshake at all. Without it, the sender only
	// looks at the status.
	fill func(h *Handshake, k *Key, body any) bool
	// unsigned is the only member, which is true, of a body that the sender does not sign.
	unsigned string
}

// handshakeTable returns the handshakes of the presets.
func handshakeTable() map[string][]handshake {
	ping := []handshake{{event: "ping"}}
	return map[string][]handshake{
		"github":           ping,
		"gitea":            ping,
		"forgejo":          ping,
		"gogs":             ping,
		"buildkite":        ping,
		"pagerduty":        {{event: "pagey.ping"}},
		"bitbucket-server": {{event: "diagnostics:ping", unsigned: "test"}},
		"slack":            {{event: "url_verification", fill: answerSlack}},
		"discord":          {{event: "0", fill: answerDiscordEvents}, {event: "1", fill: answerDiscordPing}},
		"zoom":             {{event: "endpoint.url_validation", fill: answerZoom}},
	}
}

// Handshake returns the answer to a verified delivery if it is a handshake, and otherwise nil. m is what Describe has
// returned.
func (k *Key) Handshake(m *Message, body []byte) *Handshake {
	for _, one := range k.handshakes {
		if one.event != m.Event {
			continue
		}
		h := &Handshake{Event: m.Event, Status: http.StatusOK, Answer: map[string]string{"handshake": m.Event}}
		if one.fill == nil {
			return h
		}
		v, _ := strictjson.Decode(body) // decoded before, or there would be no event
		if one.fill(h, k, v) {
			return h
		}
	}
	return nil
}

// IsUnsignedTest reports whether a delivery without a signature is a handshake that the sender of this scheme does not
// sign. It proves nothing: anyone can send it.
func (s *Scheme) IsUnsignedTest(h http.Header, body []byte) bool {
	const largest = 64 // bytes of a test, which has one member; a stranger must not have a large body decoded
	if len(h[s.spec.Header]) > 0 || len(body) > largest {
		return false
	}
	for _, one := range s.handshakes {
		if one.unsigned == "" || one.event != s.readEvent(h, nil) {
			continue
		}
		v, err := strictjson.Decode(body)
		members, isObject := v.(map[string]any)
		return err == nil && isObject && len(members) == 1 && members[one.unsigned] == true
	}
	return false
}

// textMember returns a member of the body that an answer needs, and records a defect if it is missing.
func (h *Handshake) textMember(body any, path ...string) string {
	found, _ := strictjson.Lookup(body, path...)
	text, _ := found.(string)
	if text == "" {
		h.Defect = fmt.Sprintf("The %s of %s is missing.", path[len(path)-1], h.Event)
	}
	return text
}

// answerSlack returns the challenge: https://docs.slack.dev/reference/events/url_verification.
func answerSlack(h *Handshake, _ *Key, body any) bool {
	h.Answer = map[string]string{"challenge": h.textMember(body, "challenge")}
	return true
}

// answerDiscordPing answers the PING of an interactions endpoint. An event of the Webhook Events API has the same type
// and a member event: https://docs.discord.com/developers/interactions/overview.
func answerDiscordPing(h *Handshake, _ *Key, body any) bool {
	h.Answer = map[string]int{"type": 1}
	members, _ := body.(map[string]any)
	_, isEvent := members["event"]
	return !isEvent
}

// answerDiscordEvents answers the PING of the Webhook Events API, which wants no body:
// https://docs.discord.com/developers/events/webhook-events.
func answerDiscordEvents(h *Handshake, _ *Key, _ any) bool {
	h.Status, h.Answer = http.StatusNoContent, nil
	return true
}

// answerZoom returns the token and its HMAC: https://developers.zoom.us/docs/api/webhooks. Deliveries are signed with
// the same secret, and what is signed of them begins with "v0:". So a token with a colon gets no answer, which could
// be the signature of a delivery.
func answerZoom(h *Handshake, k *Key, body any) bool {
	token := h.textMember(body, "payload", "plainToken")
	if strings.Contains(token, ":") {
		h.Defect = "The plainToken has a colon."
		return true
	}
	mac := hmac.New(k.newHash, k.Bytes)
	mac.Write([]byte(token))
	h.Answer = map[string]string{"plainToken": token, "encryptedToken": hex.EncodeToString(mac.Sum(nil))}
	return true
}
