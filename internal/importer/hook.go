package importer

import (
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
)

// bodyForm is how a hook reads a body.
type bodyForm string

const (
	bodyIsJSON bodyForm = "json"
	bodyIsForm bodyForm = "form"
	// JSON in the field payload of a form; names of values begin with payload.
	bodyIsPayload bodyForm = "payload"
)

var (
	pathSegments = regexp.MustCompile(`^[A-Za-z0-9._~-]+(/[A-Za-z0-9._~-]+)*$`)
	notInName    = regexp.MustCompile(`[^A-Za-z0-9._-]+`)
	notInParam   = regexp.MustCompile(`[^a-z0-9]+`)
	envName      = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	xmlName      = regexp.MustCompile(`(^|\.)(-|#text$)`)
	nameStart    = regexp.MustCompile(`^[A-Za-z0-9]`)
)

// importHook translates the hook at a position of the file.
func (f *file) importHook(position int, parsed any) {
	n := &hookNotes{id: "at position " + strconv.Itoa(position+1), noted: maps.Clone(f.noted)}
	defer func() {
		f.result.Notes = append(f.result.Notes, n.list()...)
		if !n.isRefused() {
			f.noted = n.noted
		}
	}()
	h := decodeHook(parsed, n)
	if n.isRefused() {
		return
	}
	name := f.nameHook(&h, n)
	body := h.readBodyForm(n)
	parts := splitRule(h.Rule, n)
	c := importCredential(parts, n)
	if c != nil && slices.ContainsFunc(c.secrets, isPartTemplate) {
		n.refuse("trigger-rule", "has a secret of which only a part is a template: write the whole secret to a file")
	}
	if c != nil && c.kind == "hmac" && len(c.secrets) > 1 && !h.SoftFailures {
		n.note("trigger-rule", "without trigger-signature-soft-failures, a signature by another secret than the first "+
			"was an error; each secret is accepted now")
	}
	b := &binder{body: body, secretHeader: "Authorization", notes: n}
	if c != nil && c.kind == "token" {
		b.secretHeader = c.header
	}
	if slices.Contains(conditionHeaders(parts.conditions), b.secretHeader) {
		n.refuse("trigger-rule", "has a condition on the header %s, which holds the secret", b.secretHeader)
	}
	when := importConditions(parts.conditions, body, n)
	entry := b.importCommand(&h)
	h.noteAnswers(n)
	if out, err := yaml.Marshal(append(when, entry...)); err != nil || strings.Contains(string(out), templateMark) {
		n.refuse("the hook", "has a template that is not a secret")
	}
	if n.isRefused() {
		return
	}
	var head yaml.MapSlice
	if id := string(h.ID); id != name {
		head = append(head, yaml.MapItem{Key: "path", Value: text("/hooks/" + id)})
	}
	if c != nil {
		head = append(head, yaml.MapItem{Key: "callers", Value: []text{text(f.addCaller(c, name))}})
	} else {
		head = append(head, yaml.MapItem{Key: "dangerously_unauthenticated", Value: true})
		n.note("trigger-rule", "checks no secret: any client may start the hook, as before. Give it a caller")
	}
	if when != nil {
		head = append(head, yaml.MapItem{Key: "when", Value: when})
	}
	f.hooks = append(f.hooks, yaml.MapItem{Key: name, Value: append(head, entry...)})
}

// nameHook returns the name of a hook.
func (f *file) nameHook(h *hookSpec, n *hookNotes) string {
	id := string(h.ID)
	name := notInName.ReplaceAllString(id, "-")
	switch {
	case id == "":
		n.refuse("id", "is missing")
	case !pathSegments.MatchString(id) || path.Clean(id) != id:
		n.refuse("id", "cannot be part of a path here: use letters, digits and . _ ~ - between slashes")
	case len(name) > 60 || !nameStart.MatchString(name):
		n.refuse("id", "cannot be the name of a hook: use up to 60 letters and digits")
	case f.ids[id]:
		n.refuse("id", "is the id of another hook, too")
	}
	f.ids[id] = true
	if h.Command == "" {
		n.refuse("execute-command", "is missing")
	}
	return numbered(name, "-", func(name string) bool {
		return slices.ContainsFunc(f.hooks, func(other yaml.MapItem) bool { return other.Key == name })
	})
}

// readBodyForm returns how the body is read.
func (h *hookSpec) readBodyForm(n *hookNotes) bodyForm {
	const at = "incoming-payload-content-type"
	if len(h.JSONParameters) > 0 {
		return h.readPayloadForm(n)
	}
	switch kind := strings.ToLower(string(h.ContentType)); {
	case kind == "" && h.readsXML():
		n.refuse(at, "the names are those of XML, and a body is JSON or a form")
	case kind == "":
		if h.readsPayload() {
			n.noteOnce(at, "is missing: the hook reads JSON. If the sender sends a form, write body: {as: form}")
		}
	case strings.Contains(kind, "json"):
	case strings.Contains(kind, "x-www-form-urlencoded"):
		return bodyIsForm
	case h.readsPayload():
		n.refuse(at, "%q is not read: a body is JSON or a form", h.ContentType)
	}
	return bodyIsJSON
}

// readPayloadForm returns the form of a body that has JSON in a value: the one field payload of a form is read so.
func (h *hookSpec) readPayloadForm(n *hookNotes) bodyForm {
	const at = "parse-parameters-as-json"
	one := argument{Source: "payload", Name: "payload"}
	other := func(a argument) bool {
		return a.Source == "payload" && !strings.HasPrefix(string(a.Name), payloadField)
	}
	kind := string(h.ContentType)
	switch {
	case len(h.JSONParameters) > 1 || h.JSONParameters[0] != one || strings.Contains(kind, "json"):
		n.refuse(at, "JSON inside a value is only read in the field payload of a form")
	case h.reads(other):
		n.refuse(at, "another value of the body is read, too: the form may have only the field payload")
	default:
		n.note(at, "the JSON in the only field, payload, of a form is read; multipart/form-data is not")
	}
	return bodyIsPayload
}

// payloadField is what the names of values begin with that are in the JSON of the field payload.
const payloadField = "payload."

// readsPayload reports whether an argument or a condition reads the body.
func (h *hookSpec) readsPayload() bool {
	return h.reads(func(a argument) bool { return a.Source == "payload" })
}

// readsXML reports whether a name is that of an attribute or of the text of an element.
func (h *hookSpec) readsXML() bool {
	return h.reads(func(a argument) bool { return a.Source == "payload" && xmlName.MatchString(string(a.Name)) })
}

func (h *hookSpec) reads(reads func(argument) bool) bool {
	return slices.ContainsFunc(h.Arguments, reads) || slices.ContainsFunc(h.Environment, reads) ||
		h.Rule != nil && h.Rule.reads(reads)
}

func (r *rule) reads(of func(argument) bool) bool {
	is := func(r rule) bool { return r.reads(of) }
	return r.Match != nil && of(r.Match.Parameter) || r.Not != nil && r.Not.reads(of) ||
		slices.ContainsFunc(r.And, is) || slices.ContainsFunc(r.Or, is)
}

// noteAnswers names what cannot be set: the answer, which is the run as JSON, and the method, which is POST.
func (h *hookSpec) noteAnswers(n *hookNotes) {
	isPOST := func(m scalar) bool { return strings.EqualFold(strings.TrimSpace(string(m)), "POST") }
	if len(h.Methods) > 0 && !slices.ContainsFunc(h.Methods, isPOST) {
		n.note("http-methods", "only POST is accepted: the sender must use it")
	}
	if h.Message != "" {
		n.note("response-message", "is left out: the answer is the run as JSON")
	}
	if len(h.Headers) > 0 {
		n.note("response-headers", "is left out: the answer has only the headers of the server")
	}
	if h.SuccessCode != "" {
		n.note("success-http-response-code", "is left out: the answer is 200, or 202 if the run is queued")
	}
	if h.MismatchCode != "" {
		n.note("trigger-rule-mismatch-http-response-code", "is left out: a delivery that does not fulfil the "+
			"conditions is answered with 200 and \"ignored\", a wrong secret with 401")
	}
	if h.Output || h.ErrorOutput {
		n.note("include-command-output-in-response",
			"is left out: send the header \"Prefer: wait=60\", and read the output at the Location of the answer")
	}
}

// binder makes parameters of the values that a command gets.
type binder struct {
	body         bodyForm
	secretHeader string
	notes        *hookNotes

	params yaml.MapSlice
	names  map[string]string // of parameters, by path
}

// importCommand returns the rest of a hook: command, parameters and environment.
func (b *binder) importCommand(h *hookSpec) (entry yaml.MapSlice) {
	add := func(key string, value any) { entry = append(entry, yaml.MapItem{Key: key, Value: value}) }
	if len(h.Files) > 0 {
		b.notes.refuse("pass-file-to-command",
			"no file is made of a value: write stdin: body, and have the command read it")
	}
	command := []string{escapeBraces(b.program(h))}
	for i, a := range h.Arguments {
		command = append(command, b.bind(a, "pass-arguments-to-command["+strconv.Itoa(i)+"]"))
	}
	var env yaml.MapSlice
	for i, a := range h.Environment {
		at := "pass-environment-to-command[" + strconv.Itoa(i) + "]"
		name := string(a.Env)
		if name == "" {
			name = "HOOK_" + string(a.Name)
		}
		if !envName.MatchString(name) || strings.HasPrefix(name, "SALLYPORT_") {
			b.notes.refuse(at, "%q is not a name for a variable here: choose one by envname", name)
		}
		env = append(env, yaml.MapItem{Key: name, Value: text(b.bind(a, at))})
	}
	add("command", texts(command))
	if b.params != nil {
		add("params", b.params)
	}
	if env != nil {
		add("env", env)
	}
	if h.Dir != "" {
		if !path.IsAbs(string(h.Dir)) {
			b.notes.refuse("command-working-directory", "is not an absolute path")
		}
		add("dir", text(h.Dir))
	}
	if b.body != bodyIsJSON {
		add("body", yaml.MapSlice{{Key: "as", Value: text(b.body)}})
	}
	add("busy", yaml.MapSlice{{Key: "queue", Value: 100}})
	return entry
}

// program returns the absolute path of the command.
func (b *binder) program(h *hookSpec) string {
	const at = "execute-command"
	switch program := string(h.Command); {
	case path.IsAbs(program):
		return program
	case h.Dir != "":
		return path.Join(string(h.Dir), program)
	case strings.Contains(program, "/"):
		b.notes.refuse(at, "is not an absolute path")
		return program
	default:
		program = "/usr/local/bin/" + program
		b.notes.note(at, "has no folder: %s is written, correct it if the program is elsewhere", program)
		return program
	}
}

// bind returns the template for a value of a request.
func (b *binder) bind(a argument, at string) string {
	switch a.source() {
	case "string":
		return escapeBraces(string(a.Name))
	case "entire-payload", "raw-request-body":
		b.notes.refuse(at, "the whole body is not an argument: write stdin: body, and have the command read it")
		return ""
	}
	from := valuePath(a, b.body)
	switch {
	case from == "" || a.Name == "":
		b.notes.refuse(at, "the source %q is not read: write body, query or header with a name", a.Source)
		return ""
	case a.Source == "header" && (canonicalHeader(string(a.Name)) == b.secretHeader ||
		canonicalHeader(string(a.Name)) == "Authorization"):
		b.notes.refuse(at, "the header holds the secret, and a command gets none")
		return ""
	}
	if name, ok := b.names[from]; ok {
		return "{" + name + "}"
	}
	taken := func(name string) bool {
		for _, other := range b.names {
			if other == name {
				return true
			}
		}
		return false
	}
	base := strings.Trim(notInParam.ReplaceAllString(strings.ToLower(string(a.Name)), "_"), "_")
	if base == "" || base[0] <= '9' {
		base = "value_" + base
	}
	name := numbered(base, "_", taken)
	if b.names == nil {
		b.names = map[string]string{}
		b.notes.noteOnce(at, `any text is allowed: narrow the "match" of the parameters. `+
			"A delivery without a value, or with a list or an object there, is refused")
	}
	b.names[from] = name
	rule := yaml.MapSlice{{Key: "from", Value: text(from)}, {Key: "match", Value: text("(?s).*")}}
	b.params = append(b.params, yaml.MapItem{Key: name, Value: rule})
	return "{" + name + "}"
}

func escapeBraces(s string) string { return strings.NewReplacer("{", "{{", "}", "}}").Replace(s) }
