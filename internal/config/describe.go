package config

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"sallyport/auth"
	"sallyport/internal/keyuse"
	"sallyport/internal/terminal"
	"sallyport/runner/hook"
)

// Describe prints the configuration in effect. It prints the names and sources of secrets, but never their values.
func (c *Config) Describe(w io.Writer) {
	var b bytes.Buffer
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	row := func(name, format string, a ...any) { // writing to memory does not fail
		_, _ = fmt.Fprintf(t, "%s\t%s\n", name, terminal.Line(fmt.Sprintf(format, a...)))
	}

	if c.URL != "" {
		row("url", "%s", c.URL)
	}
	row("listen", "%s, %s or newer, %s", c.Listen, tls.VersionName(c.TLS.MinVersion), describeClientAuth(c.TLS))
	for _, pair := range c.TLS.Certificates {
		row("", "certificate for %s, until %s", certificateNames(pair.Leaf),
			pair.Leaf.NotAfter.UTC().Format(time.DateOnly))
	}
	if c.ACME != nil {
		row("", "certificates for %s, by ACME from %s", strings.Join(c.ACME.Domains, ", "), c.ACME.Directory)
	}
	label := "clients"
	for _, line := range c.clients.Describe() {
		row(label, "%s", line)
		label = ""
	}
	row("state", "%s", c.State)
	label = "include"
	for _, file := range c.included {
		row(label, "%s", file)
		label = ""
	}
	row("limits", "address %s; failures %s", c.Limits.Address, c.Limits.Failures)
	row("", "connections %d, %d from one address", c.Limits.Connections, c.Limits.ConnectionsPerAddress)
	row("drain", "%s", c.Drain)
	row("audit", "%s kept, and what was allowed for %s, signed with %s", hook.Size(c.Audit.Keep), c.Audit.LeastAge,
		cmp.Or(c.auditKey, "a key that the server made"))
	if c.Metrics != nil {
		row("metrics", "for %s", strings.Join(c.Metrics, ", "))
	}
	for _, name := range slices.Sorted(maps.Keys(c.callers)) {
		row("", "")
		row("caller "+name, "limit %s", c.CallerLimits[name])
		describeCaller(row, c.callers[name])
	}
	for _, name := range slices.Sorted(maps.Keys(c.Hooks)) {
		row("", "")
		describeHook(row, c.Hooks[name])
	}
	_ = t.Flush()
	for line := range bytes.Lines(b.Bytes()) {
		_, _ = fmt.Fprintf(w, "%s\n", bytes.TrimRight(line, " \n")) // an error means that the reader has closed
	}
}

func describeClientAuth(c *tls.Config) string {
	if c.ClientAuth == tls.NoClientCert {
		return "no client certificates"
	}
	return "client certificates verified"
}

// certificateNames returns the names that a certificate is valid for.
func certificateNames(leaf *x509.Certificate) string {
	list := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		list = append(list, ip.String())
	}
	return strings.Join(list, ", ")
}

type rowFunc func(name, format string, a ...any)

func describeCaller(row rowFunc, c *CallerSpec) {
	if h := c.HMAC; h != nil {
		row("  hmac", "%s; keys %s", cmp.Or(h.Scheme, "in "+h.Header), describeKeys(h.Keys))
	}
	if s := c.Signature; s != nil {
		row("  signature", "for %s; keys %s", strings.Join(s.Authority, ", "), describeKeys(s.Keys))
		if s.Tag != "" || len(s.Components) > 0 {
			row("", "covers %s; tag %s",
				strings.Join(append([]string{"method, target and body"}, s.Components...), ", "), cmp.Or(s.Tag, "none"))
		}
	}
	if j := c.JWT; j != nil {
		row("  jwt", "of %s for %s; keys %s", j.Issuer, j.Audience, describeJWTKeys(j))
		if j.Preset != "" {
			row("", "preset %s, signed with %s", j.Preset, strings.Join(j.Algorithms, ", "))
		}
		for _, name := range slices.Sorted(maps.Keys(j.Claims)) {
			value, _ := json.Marshal(j.Claims[name]) // in JSON, as in the token; the value was checked
			row("", "claim %s is %s", name, value)
		}
	}
	if t := c.Token; t != nil {
		row("  token", "in %s; keys %s", cmp.Or(t.Header, "Authorization"), describeKeys(t.Keys))
	}
	if m := c.MTLS; m != nil {
		describeMTLS(row, m)
	}
	if c.From != nil {
		row("  from", "%s", strings.ReplaceAll(strings.Trim(fmt.Sprint(c.From), "[]"), " ", ", "))
	}
	if c.Observe {
		row("  observe", "verified and logged; starts nothing")
	}
	if c.Replay != "" {
		row("  replay", "%s", c.Replay)
	}
}

func describeMTLS(row rowFunc, m *auth.MTLSSpec) {
	by := ""
	if m.CA != "" {
		by = ", by the CAs of " + m.CA
	}
	for kind, name := range map[string]string{
		"URI": m.URI, "DNS": m.DNS, "CN": m.CN,
		"fingerprint": strings.Join(m.Fingerprint, " or "),
	} {
		if name != "" {
			row("  mtls", "%s %s%s", kind, name, by)
		}
	}
}

// describeJWTKeys describes the source of the keys that verify tokens.
func describeJWTKeys(j *auth.JWTSpec) string {
	from := describeKeys(j.Keys)
	switch {
	case j.JWKS != "":
		from = strings.TrimPrefix(from+", "+j.JWKS, ", ")
	case len(j.Keys) == 0:
		from = "by its discovery document"
	}
	if j.CA != "" {
		from += ", fetched by the CAs of " + j.CA
	}
	return from
}

func describeKeys(specs []auth.KeySpec) string {
	var list []string
	for _, k := range specs {
		from := "file " + k.File
		switch {
		case k.Env != "":
			from = "environment " + k.Env
		case k.Credential != "":
			from = "credential " + k.Credential
		}
		list = append(list, fmt.Sprintf("%s (%s)", cmp.Or(k.ID, "1"), from))
	}
	return strings.Join(list, ", ")
}

// DescribeKeys prints each key, when it is accepted, and when it was last used. Used keys that have been removed from
// the file come last.
func (c *Config) DescribeKeys(w io.Writer, uses []keyuse.Use, now time.Time) {
	last := make(map[keyuse.Use]time.Time, len(uses))
	for _, u := range uses {
		last[keyuse.Use{Caller: u.Caller, Kind: u.Kind, Key: u.Key}] = u.At
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(u keyuse.Use, taken, used string) {
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", terminal.Line(u.Caller), u.Kind, terminal.Line(u.Key),
			taken, used)
	}
	_, _ = fmt.Fprintln(t, "\nCALLER\tCREDENTIAL\tKEY\tTAKEN\tLAST USED")
	for _, k := range c.Auth.Keys() {
		u := keyuse.Use{Caller: k.Caller, Kind: k.Kind, Key: k.ID}
		used := "never"
		if at, ok := last[u]; ok {
			used = at.UTC().Format(time.RFC3339)
		}
		delete(last, u)
		row(u, describeValidity(k, now), used)
	}
	rest := slices.Collect(maps.Keys(last))
	keyuse.SortUses(rest)
	for _, u := range rest {
		row(u, "not in the file", last[u].UTC().Format(time.RFC3339))
	}
	_ = t.Flush() // an error means that the reader has closed
}

// describeValidity describes when a key is accepted.
func describeValidity(k auth.KeyInfo, now time.Time) string {
	var list []string
	if !k.NotBefore.IsZero() {
		list = append(list, "from "+k.NotBefore.Format(time.RFC3339))
	}
	if !k.NotAfter.IsZero() {
		list = append(list, "until "+k.NotAfter.Format(time.RFC3339))
	}
	switch {
	case !k.NotAfter.IsZero() && now.After(k.NotAfter):
		list = append(list, "which is past")
	case now.Before(k.NotBefore):
		list = append(list, "which is to come")
	}
	return cmp.Or(strings.Join(list, " "), "always")
}

func describeHook(row rowFunc, h *hook.Hook) {
	s := h.Spec()
	row("hook "+h.Name, "POST %s", h.Path)
	if h.Unauthenticated {
		row("  callers", "any client, unauthenticated")
	} else {
		row("  callers", "%s", strings.Join(h.Callers, ", "))
	}
	label := "  when"
	when, _ := s.When.(map[string]any)
	if text, ok := s.When.(string); ok {
		row(label, "%s", strings.Join(strings.Fields(text), " "))
		when = nil
	}
	for _, c := range h.When() {
		if c.Key == "" {
			continue
		}
		row(label, "%s: %s", c.Key, describeJSON(when[c.Key]))
		label = ""
	}
	row("  command", "%q", s.Command)
	label = "  params"
	for _, name := range slices.Sorted(maps.Keys(s.Params)) {
		from := "from " + s.Params[name].From.String()
		if expr := s.Params[name].Expr; expr != "" {
			from = "is " + strings.Join(strings.Fields(expr), " ")
		}
		row(label, "%s %s, %s", name, from, describeValues(s.Params[name]))
		label = ""
	}
	label = "  env"
	for _, name := range slices.Sorted(maps.Keys(s.Env)) {
		row(label, "%s=%q", name, s.Env[name])
		label = ""
	}
	if s.Title != "" {
		row("  title", "%s", s.Title)
	}
	row("  flight", "%s; when busy: %s", s.Flight, s.Busy)
	row("  timeout", "%s, then TERM, and KILL after %s", s.Timeout, s.Grace)
	row("  body", "%s, %s at most, within %s%s", s.Body.As, s.Body.Max, s.Body.Timeout,
		map[bool]string{true: ", to stdin"}[h.StdinBody])
	row("  output", "the first %s and the last %s are kept", s.Output.Head, s.Output.Tail)
	if s.Dir != "" {
		row("  dir", "%s", s.Dir)
	}
	if *s.Umask != hook.DefaultUmask {
		row("  umask", "%s", *s.Umask)
	}
}

func describeJSON(v any) string {
	var text strings.Builder
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // a value of the file can be encoded
	return strings.TrimSpace(text.String())
}

// describeValues describes the allowed values of a parameter.
func describeValues(p hook.ParamSpec) string {
	var b strings.Builder
	switch {
	case p.Match != "":
		fmt.Fprintf(&b, "matching %s", p.Match)
	case p.Enum != nil:
		fmt.Fprintf(&b, "one of %q", p.Enum)
	default:
		b.WriteString(p.Type)
	}
	if p.Min != nil {
		fmt.Fprintf(&b, ", %d or more", *p.Min)
	}
	if p.Max != nil {
		fmt.Fprintf(&b, ", %d or less", *p.Max)
	}
	if p.Default != nil {
		fmt.Fprintf(&b, ", default %q", *p.Default)
	}
	return b.String()
}
