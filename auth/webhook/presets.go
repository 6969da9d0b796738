package webhook

import (
	"maps"
	"slices"
	"time"

	"sallyport/internal/diag"
)

// preset is a row of the table below.
type preset struct {
	spec SchemeSpec
	// alt is the same scheme with the other kind of key: the text of a key
	// that begins with alt's prefix is verified by it.
	alt *SchemeSpec
	// unconfirmed marks what only third parties document.
	unconfirmed bool
}

func header(name string) *FieldSpec { return &FieldSpec{Header: name} }
func body(path string) *FieldSpec   { return &FieldSpec{Body: path} }

// plain is the most common scheme: the hex HMAC-SHA256 of the body.
func plain(name, value string, event *FieldSpec) SchemeSpec {
	return SchemeSpec{Header: name, Value: value, Signed: "{body}", Event: event}
}

// list is plain with several entries, of which the v1 ones count.
func list(name string, id, event *FieldSpec) SchemeSpec {
	s := plain(name, "v1={sig}", event)
	s.List, s.ID = ",", id
	return s
}

// jsonOnly is plain for senders that sign the JSON even when they send a form.
func jsonOnly(name, event string) SchemeSpec {
	s := plain(name, "{sig}", header(event))
	s.JSON = true
	return s
}

// standard is https://www.standardwebhooks.com, under any prefix of the headers.
func standard(prefix string, event *FieldSpec) SchemeSpec {
	return SchemeSpec{
		Header: prefix + "-signature", Value: "v1,{sig}", List: " ", Encoding: "base64", Signed: "{id}.{ts}.{body}",
		Key: KeyForm{Encoding: "base64", Prefix: "whsec_"}, TS: &TimeSpec{Header: prefix + "-timestamp"}, ID: header(prefix + "-id"), Event: event,
	}
}

// standardPublic is its asymmetric half, v1a.
func standardPublic(prefix string) *SchemeSpec {
	s := standard(prefix, body("type"))
	s.Value, s.Hash, s.Key.Prefix = "v1a,{sig}", "ed25519", "whpk_"
	return &s
}

// presets is what known senders put on the wire. Ids and timestamps that the
// signature does not cover are left out: whoever replays can change them.
func presets() map[string]preset {
	return map[string]preset{
		"github":           {spec: plain("X-Hub-Signature-256", "sha256={sig}", header("X-GitHub-Event"))},
		"gitlab":           {spec: standard("webhook", header("X-Gitlab-Event"))},
		"gitea":            {spec: jsonOnly("X-Gitea-Signature", "X-Gitea-Event")},
		"forgejo":          {spec: jsonOnly("X-Forgejo-Signature", "X-Forgejo-Event"), unconfirmed: true},
		"gogs":             {spec: jsonOnly("X-Gogs-Signature", "X-Gogs-Event")},
		"bitbucket":        {spec: plain("X-Hub-Signature", "sha256={sig}", header("X-Event-Key")), unconfirmed: true},
		"bitbucket-server": {spec: plain("X-Hub-Signature", "sha256={sig}", header("X-Event-Key"))},
		"circleci":         {spec: list("circleci-signature", body("id"), header("circleci-event-type"))},
		"buildkite": {spec: SchemeSpec{
			Header: "X-Buildkite-Signature", Value: "timestamp={ts},signature={sig}", List: ",", Signed: "{ts}.{body}",
			TS: &TimeSpec{}, Event: header("X-Buildkite-Event"),
		}},
		"harness":   {spec: plain("X-Gitness-Signature", "{sig}", header("X-Gitness-Trigger"))},
		"sonarqube": {spec: plain("X-Sonar-Webhook-HMAC-SHA256", "{sig}", nil), unconfirmed: true},
		// With a timestamp header, whose name its operator chooses, Grafana
		// signs {ts}:{body}: that is a scheme of one's own.
		"grafana":   {spec: plain("X-Grafana-Alerting-Signature", "{sig}", nil)},
		"pagerduty": {spec: list("X-PagerDuty-Signature", body("event.id"), body("event.event_type"))},
		"sentry":    {spec: plain("Sentry-Hook-Signature", "{sig}", header("Sentry-Hook-Resource"))},
		"linear": {spec: SchemeSpec{
			Header: "Linear-Signature", Signed: "{body}",
			TS: &TimeSpec{Body: "webhookTimestamp", Unit: "ms", Tolerance: time.Minute},
		}},
		"slack": {spec: SchemeSpec{
			Header: "X-Slack-Signature", Value: "v0={sig}", Signed: "v0:{ts}:{body}",
			TS: &TimeSpec{Header: "X-Slack-Request-Timestamp"}, ID: body("event_id"), Event: body("type"),
		}},
		"discord": {spec: SchemeSpec{
			Header: "X-Signature-Ed25519", Hash: "ed25519", Signed: "{ts}{body}", Key: KeyForm{Encoding: "hex"},
			TS: &TimeSpec{Header: "X-Signature-Timestamp"}, ID: body("id"), Event: body("type"),
		}},
		"stripe": {spec: SchemeSpec{
			Header: "Stripe-Signature", Value: "t={ts},v1={sig}", List: ",", Signed: "{ts}.{body}",
			TS: &TimeSpec{}, ID: body("id"), Event: body("type"),
		}},
		"shopify": {spec: SchemeSpec{
			Header: "X-Shopify-Hmac-Sha256", Encoding: "base64", Signed: "{body}", Event: header("X-Shopify-Topic"),
		}, unconfirmed: true},
		"zoom": {spec: SchemeSpec{
			Header: "x-zm-signature", Value: "v0={sig}", Signed: "v0:{ts}:{body}",
			TS: &TimeSpec{Header: "x-zm-request-timestamp"}, Event: body("event"),
		}, unconfirmed: true},
		"standard-webhooks": {spec: standard("webhook", body("type")), alt: standardPublic("webhook")},
		"svix":              {spec: standard("svix", body("type")), alt: standardPublic("svix")},
		"dbt": {spec: SchemeSpec{
			Header: "Authorization", Signed: "{body}", ID: body("eventId"), Event: body("eventType"),
		}},
		// Its sync_id is of the sync, whose start and end are two deliveries.
		"fivetran":   {spec: plain("X-Fivetran-Signature-256", "{sig}", body("event")), unconfirmed: true},
		"databricks": {spec: plain("X-Databricks-Signature", "{sig}", body("event"))},
	}
}

// Presets returns the names of the schemes that are known, in order.
func Presets() []string { return slices.Sorted(maps.Keys(presets())) }

// Preset returns the scheme of a known sender.
func Preset(name string) (*Scheme, bool) {
	row, ok := presets()[name]
	if !ok {
		return nil, false
	}
	var p diag.List // stays empty: a test compiles every row
	s := CompileScheme(&row.spec, &p)
	s.Name, s.Unconfirmed = name, row.unconfirmed
	if row.alt != nil {
		s.alt = CompileScheme(row.alt, &p)
	}
	return s, true
}
