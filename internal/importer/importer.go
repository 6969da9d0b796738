// Package importer translates the hooks file of adnanh/webhook into a configuration of this program.
//
// [Import] reads one hooks file, JSON or YAML, and returns a configuration as text, and what the user must know: what
// is left out and why, and which secrets must be put into which files. It opens no file.
//
// A hook is never translated with less checking than its file asks for. A hook with a rule, a property or an argument
// that has no equivalent here is refused as a whole; a property that only changes the answer is left out. A secret is
// never part of the configuration or of a note.
package importer

import (
	"fmt"
	"slices"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// Note is one thing that the user must know about a hook.
type Note struct {
	Hook     string // its id, or its position if it has none
	Property string // a path into the hook: trigger-rule.and[0].match
	Text     string
	Refused  bool // the hook is not in the configuration
}

// String returns the note as one line.
func (n Note) String() string {
	what := "note"
	if n.Refused {
		what = "not imported"
	}
	return fmt.Sprintf("hook %s: %s: %s: %s", n.Hook, what, n.Property, n.Text)
}

// Secret is the content of a file that the configuration names and that the user, or a command, must create.
type Secret struct {
	File string // as in the configuration
	Hook string // the id of the first hook that uses it
	Text string
}

// Result is what [Import] returns.
type Result struct {
	YAML    []byte // nil if no hook could be translated
	Notes   []Note
	Secrets []Secret
}

// Refused returns how many hooks are not in the configuration.
func (r *Result) Refused() int {
	var ids []string
	for _, n := range r.Notes {
		if n.Refused && !slices.Contains(ids, n.Hook) {
			ids = append(ids, n.Hook)
		}
	}
	return len(ids)
}

// Import translates a hooks file. Files of secrets are named below the folder secrets. The error is that of a file
// that is not a list of hooks.
func Import(data []byte, secrets string) (*Result, error) {
	hooks, err := readHooks(data)
	if err != nil {
		return nil, err
	}
	f := &file{secrets: secrets, ids: map[string]bool{}, noted: map[string]bool{}}
	for i, h := range hooks {
		f.importHook(i, h)
	}
	if len(f.hooks) > 0 {
		if f.result.YAML, err = f.marshal(); err != nil {
			return nil, err
		}
	}
	return &f.result, nil
}

// file is a configuration that is being made.
type file struct {
	secrets string // the folder for files of secrets
	callers []*caller
	hooks   yaml.MapSlice
	result  Result
	ids     map[string]bool // of hooks
	noted   map[string]bool // the notes that the first hook stands for
}

const head = `# Made from a hooks file of adnanh/webhook. The folder state is created at the start. For development,
# "sallyport certs dev" makes the certificate.
`

func (f *file) marshal() ([]byte, error) {
	all := yaml.MapSlice{
		{Key: "state", Value: text("state")},
		{Key: "tls", Value: yaml.MapSlice{
			{Key: "cert", Value: text("certs/server.pem")}, {Key: "key", Value: text("certs/server.key")},
		}},
	}
	if len(f.callers) > 0 {
		callers := yaml.MapSlice{}
		for _, c := range f.callers {
			callers = append(callers, yaml.MapItem{Key: c.name, Value: c.marshal()})
		}
		all = append(all, yaml.MapItem{Key: "callers", Value: callers})
	}
	all = append(all, yaml.MapItem{Key: "hooks", Value: f.hooks})
	node, err := yaml.ValueToNode(all, yaml.IndentSequence(true))
	if err != nil {
		return nil, err
	}
	ast.Walk(quoteKeys{}, node)
	return []byte(head + node.String() + "\n"), nil
}

// quoteKeys puts the keys of mappings in quotes that a reader of YAML could take for something else.
type quoteKeys struct{}

// Visit implements ast.Visitor.
func (q quoteKeys) Visit(n ast.Node) ast.Visitor {
	if entry, ok := n.(*ast.MappingValueNode); ok {
		key, ok := entry.Key.(*ast.StringNode)
		if ok && !isPlain(key.Value) {
			key.Token.Type = token.DoubleQuoteType
		}
	}
	return q
}

// hookNotes collects the notes about one hook.
type hookNotes struct {
	id    string
	notes []Note
	noted map[string]bool // of the file
}

func (n *hookNotes) note(property, format string, a ...any) {
	n.notes = append(n.notes, Note{Hook: n.id, Property: property, Text: fmt.Sprintf(format, a...)})
}

// noteOnce adds a note that holds for each hook of the file in the same way, unless a hook before has it.
func (n *hookNotes) noteOnce(property, text string) {
	if !n.noted[text] {
		n.noted[text] = true
		n.note(property, "%s (as in the hooks after it)", text)
	}
}

func (n *hookNotes) refuse(property, format string, a ...any) {
	n.note(property, format, a...)
	n.notes[len(n.notes)-1].Refused = true
}

// list returns the notes. Those of a hook that is refused say only why.
func (n *hookNotes) list() []Note {
	if !n.isRefused() {
		return n.notes
	}
	return slices.DeleteFunc(n.notes, func(n Note) bool { return !n.Refused })
}

func (n *hookNotes) isRefused() bool {
	return slices.ContainsFunc(n.notes, func(n Note) bool { return n.Refused })
}
