package hook

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"sallyport/internal/diag"
	"sallyport/internal/strictjson"
)

// The formats of a body that parameters are taken from. The hook and the scheme of the caller decide which one is read,
// not the Content-Type: most signatures do not cover the Content-Type, so an attacker that replays a signed body could
// choose another reading of the same bytes.
const (
	bodyJSON    = "json"
	bodyForm    = "form"
	bodyPayload = "payload" // JSON, or a form with the JSON as its only field, payload
)

// ErrBody is wrapped by the errors of a body that a condition or a parameter reads and that cannot be decoded.
var ErrBody = errors.New("unreadable body")

// body is a decoded body, in which parameters are looked up.
type body struct {
	json any
	form url.Values // nil for JSON
}

func (b BodySpec) checkForm(p *diag.List) {
	if b.As != bodyJSON && b.As != bodyForm && b.As != bodyPayload {
		p.Errorf("%q is not a form of a body: json, form or payload", b.As)
	}
}

// unwrapBody returns the JSON in a form with the field payload, if the hook or its caller may get such forms, and any
// other body as it is. A hook without parameters from the body may pass it to the command.
func (h *Hook) unwrapBody(in Input) ([]byte, error) {
	mayWrap := h.Body.As == bodyPayload || h.Body.As == bodyJSON && in.PayloadForm
	if !mayWrap || !h.StdinBody && !h.readsBody() {
		return in.Body, nil
	}
	text, err := strictjson.Unwrap(in.Body)
	if err != nil {
		return in.Body, fmt.Errorf("%w: this hook reads JSON in the field payload of a form: %s", ErrBody, err.Error())
	}
	return text, nil
}

// readBody decodes the body as the hook says, if a condition reads it or a parameter is taken from it.
func (h *Hook) readBody(in Input) (body, error) {
	switch {
	case !h.readsBody() || len(in.Body) == 0:
		return body{}, nil
	case h.Body.As == bodyForm:
		return readForm(in.Body)
	}
	v, err := strictjson.Decode(in.Body)
	if err != nil {
		return body{}, fmt.Errorf("%w: this hook reads JSON: %s", ErrBody, err.Error()) // the sender sees this text
	}
	return body{json: v}, nil
}

// readsBody reports whether a condition reads the body, or a parameter is taken from it.
func (h *Hook) readsBody() bool {
	if slices.ContainsFunc(h.when, Condition.IsOfBody) {
		return true
	}
	for _, p := range h.params {
		if p.expr.Reads("body") || slices.ContainsFunc(p.from, func(path strictjson.Path) bool { return path.Root() == "body" }) {
			return true
		}
	}
	return false
}

// formStart contains the characters that a form may begin with, in addition to letters and digits.
const formStart = "%&*+-.=_~"

// readForm decodes a form. It refuses a body with a first character that cannot begin a form, for example a JSON
// object. Without this check, a signed JSON body could also be read as a form, in which each "&" in its strings begins
// a field.
func readForm(data []byte) (body, error) {
	first := data[0] | 0x20 // in lower case
	if (first < 'a' || first > 'z') && (data[0] < '0' || data[0] > '9') && strings.IndexByte(formStart, data[0]) < 0 {
		return body{}, fmt.Errorf("%w: this hook reads a form, and the body does not begin as one", ErrBody)
	}
	form, err := url.ParseQuery(string(data))
	if err != nil {
		return body{}, fmt.Errorf("%w: this hook reads a form, and the body is not one", ErrBody)
	}
	return body{form: form}, nil
}
