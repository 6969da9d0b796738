package importer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"

	"sallyport/internal/strictjson"
)

// hookSpec is a hook of the file. It has many fields, because each is a key that webhook knows.
type hookSpec struct {
	ID             scalar          `json:"id"`
	Command        scalar          `json:"execute-command"`
	Dir            scalar          `json:"command-working-directory"`
	Arguments      []argument      `json:"pass-arguments-to-command"`
	Environment    []argument      `json:"pass-environment-to-command"`
	Files          []argument      `json:"pass-file-to-command"`
	JSONParameters []argument      `json:"parse-parameters-as-json"`
	Rule           *rule           `json:"trigger-rule"`
	MismatchCode   scalar          `json:"trigger-rule-mismatch-http-response-code"`
	SoftFailures   bool            `json:"trigger-signature-soft-failures"`
	ContentType    scalar          `json:"incoming-payload-content-type"`
	Methods        []scalar        `json:"http-methods"`
	Message        scalar          `json:"response-message"`
	Headers        json.RawMessage `json:"response-headers"`
	SuccessCode    scalar          `json:"success-http-response-code"`
	Output         bool            `json:"include-command-output-in-response"`
	ErrorOutput    bool            `json:"include-command-output-in-response-on-error"`
}

// argument is a reference to a value of a request.
type argument struct {
	Source scalar `json:"source"`
	Name   scalar `json:"name"`
	Env    scalar `json:"envname"`
	Base64 bool   `json:"base64decode"`
}

// rule has one of these.
type rule struct {
	And   []rule `json:"and"`
	Or    []rule `json:"or"`
	Not   *rule  `json:"not"`
	Match *match `json:"match"`
}

type match struct {
	Type      scalar   `json:"type"`
	Regex     scalar   `json:"regex"`
	Secret    scalar   `json:"secret"`
	Value     scalar   `json:"value"`
	Networks  scalar   `json:"ip-range"`
	Parameter argument `json:"parameter"`
}

// scalar is text, which a YAML file may write as a number.
type scalar string

// UnmarshalJSON implements json.Unmarshaler.
func (s *scalar) UnmarshalJSON(data []byte) error {
	var plain string
	switch {
	case json.Unmarshal(data, &plain) == nil:
		*s = scalar(plain)
		return nil
	case bytes.ContainsAny(data[:1], "[{"):
		return errors.New("is not text")
	}
	*s = scalar(data)
	return nil
}

// A template is an action of the hooks file that names where a secret is. It stands for the secret in what follows.
const templateMark = "@sallyport-template:"

var templateAction = regexp.MustCompile(
	`"?\{\{-?\s*(getenv|credential|cat)\s+"([^"{}\\]+)"\s*(?:\|\s*js\s*)?-?\}\}"?`)

// replaceTemplates replaces the actions by text in quotes.
func replaceTemplates(data []byte) []byte {
	return templateAction.ReplaceAll(data, []byte(`"`+templateMark+`$1:$2"`))
}

// readHooks returns the hooks of a file, each as it was parsed.
func readHooks(data []byte) ([]any, error) {
	data = replaceTemplates(bytes.TrimPrefix(data, []byte("\ufeff")))
	root, err := strictjson.Decode(data)
	if err != nil {
		// Comments and commas that JSON does not have are YAML. A tab is not, but JSON has it between values alone.
		if start := bytes.TrimSpace(data); len(start) > 0 && start[0] == '[' {
			data = bytes.ReplaceAll(data, []byte("\t"), []byte(" "))
		}
		root = nil
		err = yaml.Unmarshal(data, &root)
	}
	hooks, ok := root.([]any)
	switch {
	case err != nil && bytes.Contains(data, []byte("{{")):
		return nil, fmt.Errorf("the file cannot be parsed; of templates, only getenv, credential and cat are read: %w",
			err)
	case err != nil:
		return nil, err
	case !ok || len(hooks) == 0:
		return nil, errors.New("the file is not a list of hooks")
	}
	return hooks, nil
}

// decodeHook returns a hook, and refuses what is unknown in it: a property with a typo may be one that protects.
func decodeHook(parsed any, n *hookNotes) (h hookSpec) {
	object, ok := parsed.(map[string]any)
	if !ok {
		n.refuse("the hook", "is not a mapping of properties")
		return h
	}
	if id, ok := object["id"].(string); ok && id != "" {
		n.id = id
	}
	refuseUnknown(object, reflect.TypeFor[hookSpec](), "", n)
	data, err := json.Marshal(object)
	if err == nil {
		err = json.Unmarshal(data, &h)
	}
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &kind) && kind.Field != "":
		n.refuse(kind.Field, "must not be %s", kind.Value)
	case err != nil:
		n.refuse("the hook", "%v", err)
	}
	return h
}

// refuseUnknown refuses the properties of value that the struct t does not have. The case of letters does not count.
func refuseUnknown(value any, t reflect.Type, at string, n *hookNotes) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch v := value.(type) {
	case []any:
		for i, one := range v {
			if t.Kind() == reflect.Slice && t != reflect.TypeFor[json.RawMessage]() {
				refuseUnknown(one, t.Elem(), fmt.Sprintf("%s[%d]", at, i), n)
			}
		}
	case map[string]any:
		if t.Kind() != reflect.Struct {
			return
		}
		for _, key := range slices.Sorted(maps.Keys(v)) {
			path := strings.TrimPrefix(at+"."+key, ".")
			field := func(f reflect.StructField) bool { return strings.EqualFold(f.Tag.Get("json"), key) }
			i := slices.IndexFunc(reflect.VisibleFields(t), field)
			if i < 0 {
				n.refuse(path, "is not a property of adnanh/webhook")
				continue
			}
			refuseUnknown(v[key], t.Field(i).Type, path, n)
		}
	}
}
