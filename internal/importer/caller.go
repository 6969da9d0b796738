package importer

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
)

// caller is a caller of the configuration.
type caller struct {
	name string
	credential
}

// credential is what a sender shows.
type credential struct {
	kind    string // hmac or token
	header  string
	scheme  string   // a preset, or empty
	hash    string   // of hmac without a preset
	value   string   // as hash
	prefix  string   // of token
	secrets []string // secrets, or templates that name them
	from    []string // networks
	keys    []yaml.MapSlice
}

func (c *credential) isSame(other *credential) bool {
	return c.kind == other.kind && c.header == other.header && c.scheme == other.scheme && c.hash == other.hash &&
		c.value == other.value && c.prefix == other.prefix && slices.Equal(c.secrets, other.secrets) &&
		slices.Equal(c.from, other.from)
}

// marshal returns the entry of a caller.
func (c *caller) marshal() yaml.MapSlice {
	var m yaml.MapSlice
	add := func(key, value string) {
		if value != "" {
			m = append(m, yaml.MapItem{Key: key, Value: text(value)})
		}
	}
	add("scheme", c.scheme)
	if c.scheme == "" && (c.kind == "hmac" || c.header != "Authorization") {
		add("header", c.header)
	}
	add("value", c.value)
	if c.prefix != "Bearer " {
		add("prefix", c.prefix)
	}
	if c.kind == "hmac" && c.scheme == "" {
		add("hash", c.hash)
		if c.hash == "sha1" {
			m = append(m, yaml.MapItem{Key: "dangerously_sha1", Value: true})
		}
		add("signed", "{body}")
	}
	m = append(m, yaml.MapItem{Key: "keys", Value: c.keys})
	entry := yaml.MapSlice{{Key: c.kind, Value: m}}
	if c.from != nil {
		entry = append(entry, yaml.MapItem{Key: "from", Value: texts(c.from)})
	}
	return entry
}

// presets are the senders that put an HMAC by SHA-256 into a header of this name.
var presets = map[string]string{ //nolint:gochecknoglobals // never changed
	"X-Hub-Signature-256": "github", "X-Gitea-Signature": "gitea", "X-Gogs-Signature": "gogs",
	"X-Forgejo-Signature": "forgejo", "X-Gitness-Signature": "harness", "Sentry-Hook-Signature": "sentry",
	"X-Sonar-Webhook-Hmac-Sha256": "sonarqube",
}

// importCredential returns the credential that a rule needs, or nil.
func importCredential(p ruleParts, n *hookNotes) *credential {
	switch len(p.credentials) {
	case 0:
		if p.networks != nil {
			n.refuse(p.networksAt, "an address is not a credential here: give the sender a secret, and write a caller "+
				"with it")
		}
		return nil
	case 1:
	default:
		n.refuse(p.credentials[1][0].at, "is a second credential that the same delivery must have; "+
			"here one credential decides")
		return nil
	}
	var c *credential
	for i := range p.credentials[0] {
		l := &p.credentials[0][i]
		one := l.readCredential(n)
		switch {
		case one == nil:
			return nil
		case one.secrets[0] == "":
			n.refuse(l.at, "has no secret")
			return nil
		case c == nil:
			c = one
			continue
		}
		secret := one.secrets[0]
		if one.secrets = c.secrets; !one.isSame(c) {
			n.refuse(l.at, "is an alternative in another form: write a second caller for it")
			return nil
		}
		if slices.Contains(c.secrets, secret) {
			continue
		}
		if c.kind == "hmac" && !l.isSameSignature(&p.credentials[0][0]) {
			n.refuse(l.at, "is a secret for another header or another hash than the first alternative: "+
				"each would be accepted for both, so write a second caller for it")
			return nil
		}
		c.secrets = append(c.secrets, secret)
	}
	c.from = p.networks
	return c
}

// isSameSignature reports whether two leaves compare the same header, or parameter, with a value of the same hash.
func (l *leaf) isSameSignature(other *leaf) bool {
	hash := func(l *leaf) string { return strings.Replace(string(l.Type), "-hash-", "-hmac-", 1) }
	return hash(l) == hash(other) && l.Parameter.source() == other.Parameter.source() &&
		canonicalHeader(string(l.Parameter.Name)) == canonicalHeader(string(other.Parameter.Name))
}

func (l *leaf) readCredential(n *hookNotes) *credential {
	source := l.Parameter.source()
	if l.credentialKind() == "hmac" {
		if source != "header" {
			n.refuse(l.at, "the signature is not in a header")
			return nil
		}
		return l.readHMAC(n)
	}
	switch {
	case l.Type != "value":
		n.refuse(l.at, "is a pattern for a secret: a token is compared whole")
	case source == "query":
		n.note(l.at, "the secret was in the URL, which is logged everywhere: "+
			`the sender must now send the header "Authorization: Bearer SECRET"`)
		return &credential{
			kind: "token", header: "Authorization", prefix: "Bearer ", secrets: []string{string(l.Value)},
		}
	case source != "header":
		n.refuse(l.at, "the secret is in the body: write a caller with what the sender signs with, as Slack with "+
			"hmac: {scheme: slack}")
	default:
		return l.readToken(n)
	}
	return nil
}

func (l *leaf) readToken(n *hookNotes) *credential {
	c := &credential{
		kind: "token", header: canonicalHeader(string(l.Parameter.Name)), secrets: []string{string(l.Value)},
	}
	if c.header != "Authorization" {
		return c
	}
	scheme, secret, ok := strings.Cut(string(l.Value), " ")
	if !ok {
		n.refuse(l.at, "the header Authorization needs a word before the secret, as in Bearer SECRET")
		return nil
	}
	c.prefix, c.secrets = scheme+" ", []string{secret}
	return c
}

func (l *leaf) readHMAC(n *hookNotes) *credential {
	_, hash, _ := strings.Cut(strings.TrimPrefix(string(l.Type), "payload-"), "-")
	c := &credential{
		kind: "hmac", header: canonicalHeader(string(l.Parameter.Name)), hash: hash,
		secrets: []string{string(l.Secret)},
	}
	if hash == "sha1" && c.header == "X-Hub-Signature" {
		n.note(l.at, "SHA-1 is broken; GitHub signs with SHA-256, too, by the same secret, in the header "+
			"X-Hub-Signature-256, which is verified now. Another sender needs "+
			"hash: sha1 and dangerously_sha1: true")
		c.header, hash = "X-Hub-Signature-256", "sha256"
	}
	switch scheme, known := presets[c.header]; {
	case known && hash == "sha256":
		c.scheme, c.hash = scheme, ""
	case c.header == "X-Hub-Signature" && hash == "sha256":
		c.scheme, c.hash = "bitbucket-server", ""
	case strings.HasPrefix(c.header, "X-Hub-"):
		c.value = hash + "={sig}"
	case hash != "sha1" && hash != "sha256" && hash != "sha512":
		n.refuse(l.at, "%q is not a type of match", l.Type)
		return nil
	default:
		c.value = "{sig}"
		n.note(l.at, "the signature is read without a word before it: if the sender writes %s= there, "+
			`write value: "%s={sig}"`, hash, hash)
	}
	return c
}

// addCaller returns the name of the caller with a credential, which it makes if there is none.
func (f *file) addCaller(c *credential, hook string) string {
	for _, other := range f.callers {
		if other.isSame(c) {
			return other.name
		}
	}
	base := cmp.Or(c.scheme, hook)
	taken := func(name string) bool {
		return slices.ContainsFunc(f.callers, func(other *caller) bool { return other.name == name })
	}
	name := numbered(base, "-", taken)
	for i, secret := range c.secrets {
		file := numbered(path.Join(f.secrets, name), "-", func(file string) bool {
			return slices.ContainsFunc(f.result.Secrets, func(other Secret) bool { return other.File == file })
		})
		c.keys = append(c.keys, f.addKey(strconv.Itoa(i+1), file, secret, hook))
	}
	f.callers = append(f.callers, &caller{name, *c})
	return name
}

// cutTemplate returns the function and the name of a secret that is a template. In a YAML text with other quotes, its
// own quotes are a part of the value.
func cutTemplate(secret string) (function, name string, found bool) {
	rest, found := strings.CutPrefix(strings.TrimPrefix(secret, `"`), templateMark)
	function, name, _ = strings.Cut(strings.TrimSuffix(rest, `"`), ":")
	return function, name, found && !strings.Contains(name, `"`)
}

// isPartTemplate reports whether a secret is a template and more. The text of the template would be its public part.
func isPartTemplate(secret string) bool {
	_, _, isWhole := cutTemplate(secret)
	return strings.Contains(secret, templateMark) && !isWhole
}

// addKey returns the key of a secret, which is in file unless a template says where it is.
func (f *file) addKey(id, file, secret, hook string) yaml.MapSlice {
	place, value := "file", file
	if function, name, ok := cutTemplate(secret); ok {
		place = map[string]string{"getenv": "env", "credential": "credential", "cat": "file"}[function]
		value = name
	} else {
		f.result.Secrets = append(f.result.Secrets, Secret{File: file, Hook: hook, Text: secret})
	}
	return yaml.MapSlice{{Key: "id", Value: text(id)}, {Key: place, Value: text(value)}}
}

// numbered returns name, or name with a number that makes it new.
func numbered(name, separator string, taken func(string) bool) string {
	for i, base := 2, name; taken(name); i++ {
		name = fmt.Sprint(base, separator, i)
	}
	return name
}
