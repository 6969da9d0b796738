package jwt

import (
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"sallyport/internal/diag"
)

// Issuer describes an issuer that signs for many, so that the file needs few words for a caller, and never
// too few claims.
type Issuer struct {
	Name       string
	Address    string // its iss; empty where installations differ
	Find       string // how to find the address then
	Algorithms []string
	MaxAge     time.Duration // where tokens are made long before they are sent; otherwise zero
	// EachRequest is set where a sender has one token for all its requests, and cannot get another.
	EachRequest bool

	// pins are sets of claims. Each set identifies one project or account of the issuer. The file must have one.
	pins [][]pin
}

// pin is a claim, and the form of its value as JSON, in which text and numbers differ.
type pin struct {
	claim   string
	form    *regexp.Regexp
	example string
}

// issuerTable returns the presets by name. A token also has the name of its project, but a name can be taken
// over by another project. Where the token has an id, only the id is a pin.
func issuerTable() map[string]Issuer {
	digits := regexp.MustCompile(`^"[0-9]+"$`)
	slug := regexp.MustCompile(`^"[A-Za-z0-9._-]+"$`)
	uuid := regexp.MustCompile(`^"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"$`)
	account := regexp.MustCompile(`^"system:serviceaccount:[a-z0-9-]+:[a-z0-9.-]+"$`)
	email := regexp.MustCompile(`^"[^"@ ]+@[^"@ ]+"$`)
	yes := regexp.MustCompile(`^true$`)
	rs256 := []string{"RS256"}
	return map[string]Issuer{
		"github-actions": {
			Address: "https://token.actions.githubusercontent.com", Algorithms: rs256,
			pins: [][]pin{{{"repository_id", digits, `"1234"`}}},
		},
		"gitlab-ci": { // iat is when the job began
			Address: "https://gitlab.com", Algorithms: rs256, MaxAge: time.Hour,
			EachRequest: true, // a job has one
			pins:        [][]pin{{{"project_id", digits, `"1234"`}}},
		},
		"circleci": { // iat is when the job began
			Find: "https://oidc.circleci.com/org/ and the organization's id", Algorithms: rs256, MaxAge: time.Hour,
			EachRequest: true, // a job has one
			pins:        [][]pin{{{"oidc.circleci.com/project-id", uuid, "the project's id"}}},
		},
		"buildkite": {
			Address: "https://agent.buildkite.com", Algorithms: rs256,
			pins: [][]pin{{{"organization_slug", slug, "acme"}, {"pipeline_slug", slug, "release"}}},
		},
		"kubernetes": { // a mounted token is renewed when 80 % of its time is over
			Find:       "what the cluster answers as issuer to kubectl get --raw /.well-known/openid-configuration",
			MaxAge:     time.Hour,
			Algorithms: []string{"RS256", "ES256", "ES384", "ES512"}, EachRequest: true,
			pins: [][]pin{{{"sub", account, "system:serviceaccount:NAMESPACE:NAME"}}},
		},
		"google": { // the metadata server keeps a token for its hour
			Address: "https://accounts.google.com", Algorithms: rs256, MaxAge: time.Hour, EachRequest: true,
			pins: [][]pin{
				{{"sub", digits, `"104…"`}},
				{{"email", email, "name@project.iam.gserviceaccount.com"}, {"email_verified", yes, "true"}},
			},
		},
	}
}

// Presets returns the names of the issuers that are known, in order.
func Presets() []string { return slices.Sorted(maps.Keys(issuerTable())) }

// Preset returns a known issuer.
func Preset(name string) (*Issuer, bool) {
	issuer, ok := issuerTable()[name]
	issuer.Name = name
	return &issuer, ok
}

// PresetAt returns the known issuer with this address.
func PresetAt(address string) (*Issuer, bool) {
	for name, issuer := range issuerTable() {
		if address != "" && issuer.Address == address {
			return Preset(name)
		}
	}
	return nil, false
}

// CheckPins reports rules for claims that do not identify one project of the issuer.
func (issuer *Issuer) CheckPins(rules map[string]any, p *diag.List) {
	var needs []string
	for _, pins := range issuer.pins {
		missing := slices.ContainsFunc(pins, func(one pin) bool { _, ok := rules[one.claim]; return !ok })
		var need []string
		for _, one := range pins {
			need = append(need, one.claim+": "+one.example)
			value, err := json.Marshal(rules[one.claim])
			if !missing && (err != nil || !one.form.Match(value)) {
				p.At(one.claim).Errorf("is not in the form that %s uses: write %s: %s", issuer.Name, one.claim,
					one.example)
			}
		}
		if !missing {
			return
		}
		needs = append(needs, strings.Join(need, ", "))
	}
	p.Errorf("do not identify your project; %s issues tokens to everyone. Add %s",
		issuer.Name, strings.Join(needs, ", or "))
}
