package config

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"sallyport/auth"
	"sallyport/runner"
)

// Describe prints what would be served. It prints where secrets are kept and
// what they are called, never what they are.
func (c *Config) Describe(w io.Writer) {
	var b bytes.Buffer
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	row := func(name, format string, a ...any) { // to memory, which takes it all
		_, _ = fmt.Fprintf(t, "%s\t%s\n", name, visible(fmt.Sprintf(format, a...)))
	}

	row("listen", "%s, %s or newer, %s", c.Listen, tls.VersionName(c.TLS.MinVersion), clientCertificates(c.TLS))
	row("state", "%s", c.State)
	row("limits", "address %s; failures %s", c.Limits.Address, c.Limits.Failures)
	row("", "connections %d, %d from one address", c.Limits.Connections, c.Limits.ConnectionsPerAddress)
	row("drain", "%s", c.Drain)
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
		_, _ = fmt.Fprintf(w, "%s\n", bytes.TrimRight(line, " \n")) // a reader that has gone wants no more
	}
}

func clientCertificates(c *tls.Config) string {
	if c.ClientAuth == tls.NoClientCert {
		return "no client certificates"
	}
	return "client certificates verified"
}

type rowFunc func(name, format string, a ...any)

func describeCaller(row rowFunc, c *CallerSpec) {
	if h := c.HMAC; h != nil {
		row("  hmac", "%s; keys %s", cmp.Or(h.Scheme, "in "+h.Header), keys(h.Keys))
	}
	if j := c.JWT; j != nil {
		from := keys(j.Keys)
		if j.JWKS != "" {
			from = strings.TrimPrefix(from+", "+j.JWKS, ", ")
		}
		row("  jwt", "of %s for %s; keys %s", j.Issuer, j.Audience, from)
		for _, name := range slices.Sorted(maps.Keys(j.Claims)) {
			value, _ := json.Marshal(j.Claims[name]) // as the token has it; all of it was checked
			row("", "claim %s is %s", name, value)
		}
	}
	if t := c.Token; t != nil {
		row("  token", "in %s; keys %s", cmp.Or(t.Header, "Authorization"), keys(t.Keys))
	}
	if m := c.MTLS; m != nil {
		for kind, name := range map[string]string{"URI": m.URI, "DNS": m.DNS, "CN": m.CN} {
			if name != "" {
				row("  mtls", "%s %s", kind, name)
			}
		}
	}
	if c.Replay != "" {
		row("  replay", "%s", c.Replay)
	}
}

func keys(specs []auth.KeySpec) string {
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

func describeHook(row rowFunc, h *runner.Hook) {
	s := h.Spec()
	row("hook "+h.Name, "POST %s", h.Path)
	if h.Unauthenticated {
		row("  callers", "anybody, unauthenticated")
	} else {
		row("  callers", "%s", strings.Join(h.Callers, ", "))
	}
	row("  command", "%q", s.Command)
	label := "  params"
	for _, name := range slices.Sorted(maps.Keys(s.Params)) {
		row(label, "%s from %s, %s", name, s.Params[name].From, allowed(s.Params[name]))
		label = ""
	}
	label = "  env"
	for _, name := range slices.Sorted(maps.Keys(s.Env)) {
		row(label, "%s=%q", name, s.Env[name])
		label = ""
	}
	row("  flight", "%s; when busy: %s", cmp.Or(s.Flight, "one run at a time"), s.Busy)
	row("  timeout", "%s, then TERM, and KILL after %s", s.Timeout, s.Grace)
	row("  body", "%s at most, within %s%s", s.Body.Max, s.Body.Timeout, map[bool]string{true: ", to stdin"}[h.StdinBody])
	row("  output", "the first %s and the last %s are kept", s.Output.Head, s.Output.Tail)
	if s.Dir != "" {
		row("  dir", "%s", s.Dir)
	}
}

// allowed says which values a parameter may have.
func allowed(p runner.ParamSpec) string {
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
