package importer

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// leaf is a match of a rule, or its negation.
type leaf struct {
	*match

	negated bool
	at      string // path of the match in the hook
}

// alternatives are leaves of which one must hold.
type alternatives []leaf

// flattenRule returns a rule as lists of alternatives, which must all hold. It refuses a rule that has no such form.
func flattenRule(r *rule, negated bool, at string, n *hookNotes) []alternatives {
	forms := 0
	for _, present := range []bool{r.And != nil, r.Or != nil, r.Not != nil, r.Match != nil} {
		if present {
			forms++
		}
	}
	switch {
	case forms != 1 || r.And != nil && len(r.And) == 0 || r.Or != nil && len(r.Or) == 0:
		n.refuse(at, "needs one of and, or, not and match, with rules in it")
		return nil
	case r.Match != nil:
		return []alternatives{{leaf{r.Match, negated, at + ".match"}}}
	case r.Not != nil:
		return flattenRule(r.Not, !negated, at+".not", n)
	}
	list, all, name := r.And, !negated, at+".and"
	if r.Or != nil {
		list, all, name = r.Or, negated, at+".or"
	}
	var parts []alternatives
	var either alternatives
	for i := range list {
		part := flattenRule(&list[i], negated, fmt.Sprintf("%s[%d]", name, i), n)
		if !all && len(part) > 1 {
			n.refuse(name, "has an alternative of several conditions: write a hook for each alternative")
			return nil
		}
		for _, one := range part {
			parts, either = append(parts, one), append(either, one...)
		}
	}
	if all || either == nil { // each alternative was refused
		return parts
	}
	return []alternatives{either}
}

// Names of values. A value with a secret name is a secret. One with a suspect name is a secret if it looks like one, or
// if nothing else in the rule is. A header may also be a secret under another name.
var (
	secretName = regexp.MustCompile(
		`(?i:token|secret|passw|passphrase|credential|api[-_]?key|access[-_]?key|(?:^|[._-])(?:auth|pass|pwd)$)` +
			`|[a-z](?:Auth|Pass|Pwd)$`)
	suspectName  = regexp.MustCompile(`(?i:(?:^|[._-])(?:key|code|pin|sig|signature|hash)$)|[a-z](?:Key|Code|Pin)$`)
	secretHeader = regexp.MustCompile(`(?i)(^authorization$|-auth$)`)
	publicHeader = regexp.MustCompile(`(?i)(event|trigger|action|resource|topic|content-type|user-agent)`)
)

// credentialKind is what a leaf proves: hmac, token, network or scalr; or it is a condition or a method.
func (l *leaf) credentialKind() string {
	source, name := l.Parameter.source(), string(l.Parameter.Name)
	switch kind := string(l.Type); {
	case strings.HasPrefix(kind, "payload-hmac-"), strings.HasPrefix(kind, "payload-hash-"):
		return "hmac"
	case kind == "ip-whitelist":
		return "network"
	case kind == "scalr-signature":
		return "scalr"
	case source == "request":
		return "request"
	case source == "string":
		return "string"
	case secretName.MatchString(name), source == "header" && secretHeader.MatchString(name),
		suspectName.MatchString(name) && l.hasSecretText():
		return "token"
	}
	return "condition"
}

// hasSecretText reports whether the text of a comparison looks as if it was drawn by lot: letters and digits alternate.
// A template stands for a secret.
func (l *leaf) hasSecretText() bool {
	text := string(l.Value)
	if l.Type == "regex" {
		text = string(l.Regex)
	}
	length, changes, last := 0, 0, rune(0)
	for _, r := range text {
		class := rune('a')
		switch {
		case unicode.IsSpace(r):
			return false
		case unicode.IsDigit(r):
			class = '0'
		case !unicode.IsLetter(r):
			continue
		}
		if length++; last != 0 && class != last {
			changes++
		}
		last = class
	}
	return length >= 12 && changes >= 3 || strings.Contains(text, templateMark)
}

// isSecret reports whether a comparison can only be one with a secret, if nothing else in the rule is a credential.
func (l *leaf) isSecret() bool {
	return !l.negated && (l.hasSecretText() || l.Type == "value" && suspectName.MatchString(string(l.Parameter.Name)))
}

// source returns the source, of which some have two names.
func (a argument) source() string {
	if a.Source == "url" {
		return "query"
	}
	return string(a.Source)
}

// ruleParts are the parts of a rule, which must all hold.
type ruleParts struct {
	credentials []alternatives // hmac or token
	networks    []string       // nil: from anywhere
	networksAt  string         // where they are in the hook
	conditions  []alternatives
}

// splitRule sorts the parts of a rule.
func splitRule(r *rule, n *hookNotes) (p ruleParts) {
	if r == nil {
		return p
	}
	for _, part := range flattenRule(r, false, "trigger-rule", n) {
		p.addPart(part, n)
	}
	p.findSecrets(n)
	return p
}

func (p *ruleParts) addPart(part alternatives, n *hookNotes) {
	kind := part[0].credentialKind()
	for i := range part {
		switch other := part[i].credentialKind(); {
		case other != kind:
			n.refuse(part[i].at, "is an alternative to a condition of another kind, "+
				"and here credentials and conditions must all hold")
			return
		case part[i].negated && kind != "condition":
			n.refuse(part[i].at, "is negated: only conditions can be")
			return
		}
	}
	switch kind {
	case "hmac", "token":
		p.credentials = append(p.credentials, part)
	case "network":
		p.addNetworks(part, n)
	case "scalr":
		n.refuse(part[0].at, "the signature of Scalr covers the text of its Date header after the body, "+
			"which no scheme here does")
	case "string":
		n.refuse(part[0].at, "compares a fixed text with another")
	case "request":
		if m := part[0]; len(part) > 1 || m.Parameter.Name != "method" || m.Type != "value" || m.Value != "POST" {
			n.refuse(m.at, "only the method POST is accepted, and no condition reads the address of a sender")
		}
	default:
		p.conditions = append(p.conditions, part)
	}
}

// addNetworks notes the networks that a delivery may come from.
func (p *ruleParts) addNetworks(part alternatives, n *hookNotes) {
	if p.networks != nil {
		n.refuse(part[0].at, "is a second list of networks: write one of both")
		return
	}
	for _, one := range part {
		for _, written := range strings.Fields(string(one.Networks)) {
			network, err := netip.ParsePrefix(written)
			if single, notSingle := netip.ParseAddr(written); notSingle == nil {
				network, err = netip.PrefixFrom(single, single.BitLen()), nil
			}
			if err != nil {
				n.refuse(one.at, "%q is not a network", written)
				return
			}
			text := network.Masked().String()
			if network.IsSingleIP() {
				text = network.Addr().String()
			}
			p.networks = append(p.networks, text)
		}
	}
	if p.networks == nil {
		n.refuse(part[0].at, "has no network")
	}
	p.networksAt = part[0].at
}

// findSecrets takes the conditions that can only be secrets, because nothing else in the rule is one: those that look
// so, or else the first one on a header.
func (p *ruleParts) findSecrets(n *hookNotes) {
	if len(p.credentials) > 0 {
		return
	}
	for _, part := range p.conditions {
		switch secrets := countIf(part, (*leaf).isSecret); secrets {
		case 0:
		case len(part):
			p.credentials = append(p.credentials, part)
		default:
			n.refuse(part[0].at, "is an alternative to a secret or to what looks like one: write a hook for each "+
				"alternative")
		}
	}
	p.conditions = slices.DeleteFunc(p.conditions, func(part alternatives) bool { return part[0].isSecret() })
	if len(p.credentials) > 0 {
		return
	}
	if i := slices.IndexFunc(p.conditions, alternatives.areHeader); i >= 0 {
		p.credentials = append(p.credentials, p.conditions[i])
		p.conditions = slices.Delete(p.conditions, i, i+1)
	}
}

// areHeader reports whether all alternatives compare headers that no sender uses for something public.
func (a alternatives) areHeader() bool {
	return countIf(a, func(l *leaf) bool {
		return l.Parameter.source() == "header" && l.Type == "value" && !l.negated &&
			!publicHeader.MatchString(string(l.Parameter.Name))
	}) == len(a)
}

func countIf(a alternatives, is func(*leaf) bool) (n int) {
	for i := range a {
		if is(&a[i]) {
			n++
		}
	}
	return n
}
