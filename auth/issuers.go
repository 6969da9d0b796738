package auth

import (
	"cmp"
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"sallyport/internal/diag"
)

// jwtIssuer is what is known of an issuer that signs for many, so that a caller
// of it is written in a few words and never by too few.
type jwtIssuer struct {
	address    string // its iss; empty where it differs, and then
	find       string // is how to find it
	algorithms []string
	maxAge     time.Duration // where tokens are made well before they are sent
	// pins are claims by which a token is of one project or account and of no
	// other. One set of them has to be written.
	pins [][]pin
}

// pin is a claim, and the form of its value: as JSON, so that text and numbers
// are not the same.
type pin struct {
	claim   string
	form    *regexp.Regexp
	example string
}

// jwtIssuers are the presets of jwt, by name. A token also says by which name
// its project goes; names can be taken over, so those are no pins where there
// are ids.
func jwtIssuers() map[string]jwtIssuer {
	digits := regexp.MustCompile(`^"[0-9]+"$`)
	slug := regexp.MustCompile(`^"[A-Za-z0-9._-]+"$`)
	rs256 := []string{"RS256"}
	return map[string]jwtIssuer{
		"github-actions": {
			address: "https://token.actions.githubusercontent.com", algorithms: rs256,
			pins: [][]pin{{{"repository_id", digits, `"1234"`}}},
		},
		"gitlab-ci": { // iat is when the job began
			address: "https://gitlab.com", algorithms: rs256, maxAge: time.Hour,
			pins: [][]pin{{{"project_id", digits, `"1234"`}}},
		},
		"circleci": { // likewise
			find: "https://oidc.circleci.com/org/ and the organization's id", algorithms: rs256, maxAge: time.Hour,
			pins: [][]pin{{{"oidc.circleci.com/project-id", regexp.MustCompile(`^"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"$`), "the project's id"}}},
		},
		"buildkite": {
			address: "https://agent.buildkite.com", algorithms: rs256,
			pins: [][]pin{{{"organization_slug", slug, "acme"}, {"pipeline_slug", slug, "release"}}},
		},
		"kubernetes": { // a mounted token is renewed when 80 % of its time is over
			find: "what the cluster answers as issuer to kubectl get --raw /.well-known/openid-configuration", maxAge: time.Hour,
			algorithms: []string{"RS256", "ES256", "ES384", "ES512"},
			pins:       [][]pin{{{"sub", regexp.MustCompile(`^"system:serviceaccount:[a-z0-9-]+:[a-z0-9.-]+"$`), "system:serviceaccount:NAMESPACE:NAME"}}},
		},
		"google": { // the metadata server keeps a token for its hour
			address: "https://accounts.google.com", algorithms: rs256, maxAge: time.Hour,
			pins: [][]pin{
				{{"sub", digits, `"104…"`}},
				{{"email", regexp.MustCompile(`^"[^"@ ]+@[^"@ ]+"$`), "name@project.iam.gserviceaccount.com"}, {"email_verified", regexp.MustCompile(`^true$`), "true"}},
			},
		},
	}
}

// fill puts what the preset knows where nothing is written, and checks that the
// claims pin the caller, also of an issuer that is known and named by its address
// alone.
func (spec *JWTSpec) fill(p *diag.List) {
	if spec.Preset == "" {
		for name, of := range jwtIssuers() { // it signs for everybody by whatever name it goes here
			if of.address != "" && spec.Issuer == of.address {
				of.checkPins(name, spec, p.At("claims"))
			}
		}
		return
	}
	of, ok := jwtIssuers()[spec.Preset]
	if !ok {
		p.At("preset").Errorf("there is no preset %q; there are %s", spec.Preset, strings.Join(slices.Sorted(maps.Keys(jwtIssuers())), ", "))
		return
	}
	if spec.Issuer == "" && of.address == "" {
		p.At("issuer").Errorf("has to be written for %s: %s", spec.Preset, of.find)
	}
	spec.Issuer = cmp.Or(spec.Issuer, of.address)
	if spec.MaxAge == 0 {
		spec.MaxAge = of.maxAge
	}
	if len(spec.Algorithms) == 0 {
		spec.Algorithms = of.algorithms
	}
	for i, alg := range spec.Algorithms {
		if !slices.Contains(of.algorithms, alg) {
			p.At("algorithms").Index(i).Errorf("%s signs with %s", spec.Preset, strings.Join(of.algorithms, ", "))
		}
	}
	of.checkPins(spec.Preset, spec, p.At("claims"))
}

func (of *jwtIssuer) checkPins(name string, spec *JWTSpec, p *diag.List) {
	var needs []string
	for _, pins := range of.pins {
		missing := slices.ContainsFunc(pins, func(one pin) bool { _, ok := spec.Claims[one.claim]; return !ok })
		var need []string
		for _, one := range pins {
			need = append(need, one.claim+": "+one.example)
			value, err := json.Marshal(spec.Claims[one.claim])
			if !missing && (err != nil || !one.form.Match(value)) {
				p.At(one.claim).Errorf("is not of the form that %s gives it: %s: %s", name, one.claim, one.example)
			}
		}
		if !missing {
			return
		}
		needs = append(needs, strings.Join(need, ", "))
	}
	p.Errorf("do not say whose tokens these are, and %s signs for everybody: write %s", name, strings.Join(needs, ", or "))
}
