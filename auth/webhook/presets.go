package webhook

import (
	"maps"
	"slices"
	"time"

	"sallyport/internal/diag"
)

// preset is a row of presetTable.
type preset struct {
	spec SchemeSpec
	// alt is the same scheme with the other kind of key, for keys that begin with alt's prefix.
	alt *SchemeSpec
	// unconfirmed marks a scheme that only third parties document.
	unconfirmed bool
	// payloadForm marks senders that sign the whole body, and send JSON or a form with the JSON as its field payload.
	payloadForm bool
}

func inHeader(name string) *FieldSpec { return &FieldSpec{Header: name} }
func inBody(path string) *FieldSpec   { return &FieldSpec{Body: path} }

// plainScheme is the most common scheme: the hex HMAC-SHA256 of the body.
func plainScheme(name, value string, event *FieldSpec) SchemeSpec {
	return SchemeSpec{Header: name, Value: value, Signed: "{body}", Event: event}
}

// listScheme is plainScheme with several entries. Those without v1 are ignored.
func listScheme(name string, id, event *FieldSpec) SchemeSpec {
	s := plainScheme(name, "v1={sig}", event)
	s.List, s.ID = ",", id
	return s
}

// jsonScheme is plainScheme for senders that sign the JSON even when they send it in a form.
func jsonScheme(name, event string) SchemeSpec {
	s := plainScheme(name, "{sig}", inHeader(event))
	s.JSON = true
	return s
}

// standardScheme is https://www.standardwebhooks.com, with any prefix of the headers.
func standardScheme(prefix string, event *FieldSpec) SchemeSpec {
	return SchemeSpec{
		Header: prefix + "-signature", Value: "v1,{sig}", List: " ", Encoding: "base64", Signed: "{id}.{ts}.{body}",
		Key: KeyForm{Encoding: "base64", Prefix: "whsec_"}, TS: &TimeSpec{Header: prefix + "-timestamp"},
		ID: inHeader(prefix + "-id"), Event: event,
	}
}

// standardPublicScheme is the asymmetric half of standardScheme, v1a.
func standardPublicScheme(prefix string) *SchemeSpec {
	s := standardScheme(prefix, inBody("type"))
	s.Value, s.Hash, s.Key.Prefix = "v1a,{sig}", "ed25519", "whpk_"
	return &s
}

// presetTable returns what known senders put on the wire. Ids and timestamps that the signature does not
// cover are left out, because an attacker can change them in a replay.
func presetTable() map[string]preset {
	return map[string]preset{
		"github": {
			spec: plainScheme("X-Hub-Signature-256", "sha256={sig}", inHeader("X-GitHub-Event")), payloadForm: true,
		},
		"gitlab":  {spec: standardScheme("webhook", inHeader("X-Gitlab-Event"))},
		"gitea":   {spec: jsonScheme("X-Gitea-Signature", "X-Gitea-Event")},
		"forgejo": {spec: jsonScheme("X-Forgejo-Signature", "X-Forgejo-Event"), unconfirmed: true},
		"gogs":    {spec: jsonScheme("X-Gogs-Signature", "X-Gogs-Event")},
		"bitbucket": {
			spec: plainScheme("X-Hub-Signature", "sha256={sig}", inHeader("X-Event-Key")), unconfirmed: true,
		},
		"bitbucket-server": {spec: plainScheme("X-Hub-Signature", "sha256={sig}", inHeader("X-Event-Key"))},
		"circleci":         {spec: listScheme("circleci-signature", inBody("id"), inHeader("circleci-event-type"))},
		"buildkite": {spec: SchemeSpec{
			Header: "X-Buildkite-Signature", Value: "timestamp={ts},signature={sig}", List: ",", Signed: "{ts}.{body}",
			TS: &TimeSpec{}, Event: inHeader("X-Buildkite-Event"),
		}},
		"harness":   {spec: plainScheme("X-Gitness-Signature", "{sig}", inHeader("X-Gitness-Trigger"))},
		"sonarqube": {spec: plainScheme("X-Sonar-Webhook-HMAC-SHA256", "{sig}", nil), unconfirmed: true},
		// If its operator configures a timestamp header, Grafana signs {ts}:{body}. That needs a custom
		// scheme, because the operator chooses the name of the header.
		"grafana":   {spec: plainScheme("X-Grafana-Alerting-Signature", "{sig}", nil)},
		"pagerduty": {spec: listScheme("X-PagerDuty-Signature", inBody("event.id"), inBody("event.event_type"))},
		"sentry":    {spec: plainScheme("Sentry-Hook-Signature", "{sig}", inHeader("Sentry-Hook-Resource"))},
		"linear": {spec: SchemeSpec{
			Header: "Linear-Signature", Signed: "{body}",
			TS: &TimeSpec{Body: "webhookTimestamp", Unit: "ms", Tolerance: time.Minute},
		}},
		"slack": {spec: SchemeSpec{
			Header: "X-Slack-Signature", Value: "v0={sig}", Signed: "v0:{ts}:{body}",
			TS: &TimeSpec{Header: "X-Slack-Request-Timestamp"}, ID: inBody("event_id"), Event: inBody("type"),
		}, payloadForm: true}, // interactions are such forms; slash commands are other forms
		"discord": {spec: SchemeSpec{
			Header: "X-Signature-Ed25519", Hash: "ed25519", Signed: "{ts}{body}", Key: KeyForm{Encoding: "hex"},
			TS: &TimeSpec{Header: "X-Signature-Timestamp"}, ID: inBody("id"), Event: inBody("type"),
		}},
		"stripe": {spec: SchemeSpec{
			Header: "Stripe-Signature", Value: "t={ts},v1={sig}", List: ",", Signed: "{ts}.{body}",
			TS: &TimeSpec{}, ID: inBody("id"), Event: inBody("type"),
		}},
		"shopify": {spec: SchemeSpec{
			Header: "X-Shopify-Hmac-Sha256", Encoding: "base64", Signed: "{body}", Event: inHeader("X-Shopify-Topic"),
		}, unconfirmed: true},
		"zoom": {spec: SchemeSpec{
			Header: "x-zm-signature", Value: "v0={sig}", Signed: "v0:{ts}:{body}",
			TS: &TimeSpec{Header: "x-zm-request-timestamp"}, Event: inBody("event"),
		}, unconfirmed: true},
		"standard-webhooks": {spec: standardScheme("webhook", inBody("type")), alt: standardPublicScheme("webhook")},
		"svix":              {spec: standardScheme("svix", inBody("type")), alt: standardPublicScheme("svix")},
		"dbt": {spec: SchemeSpec{
			Header: "Authorization", Signed: "{body}", ID: inBody("eventId"), Event: inBody("eventType"),
		}},
		// Its sync_id does not identify a delivery: the start and the end of a sync have the same one.
		"fivetran":   {spec: plainScheme("X-Fivetran-Signature-256", "{sig}", inBody("event")), unconfirmed: true},
		"databricks": {spec: plainScheme("X-Databricks-Signature", "{sig}", inBody("event"))},
	}
}

// IsForge reports whether a preset is that of a git forge. Its users send a delivery again after they have mended what
// failed, and the forge sends it with the same body and signature.
func IsForge(name string) bool {
	switch name {
	case "github", "gitlab", "gitea", "forgejo", "gogs", "bitbucket", "bitbucket-server", "harness":
		return true
	}
	return false
}

// Presets returns the names of the known schemes, in order.
func Presets() []string { return slices.Sorted(maps.Keys(presetTable())) }

// Preset returns the scheme of a known sender.
func Preset(name string) (*Scheme, bool) {
	row, ok := presetTable()[name]
	if !ok {
		return nil, false
	}
	var p diag.List // stays empty: a test compiles every row
	s := CompileScheme(&row.spec, &p)
	s.Name, s.Unconfirmed, s.handshakes = name, row.unconfirmed, handshakeTable()[name]
	s.PayloadForm = s.PayloadForm || row.payloadForm
	if row.alt != nil {
		s.otherHalf = CompileScheme(row.alt, &p)
	}
	return s, true
}
