package hook

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"sallyport/internal/diag"
	"sallyport/internal/strictjson"
)

// The forms of a body that parameters are taken from. The hook alone decides
// which one is read: most signatures do not cover the Content-Type, so whoever
// sends a signed body again could pick another reading of the same bytes.
const (
	bodyJSON = "json"
	bodyForm = "form"
)

// ErrBody wraps what is wrong with a body that a parameter is taken from.
var ErrBody = errors.New("unreadable body")

// body is what the parameters of a body are looked up in.
type body struct {
	json any
	form url.Values // nil for JSON
}

func (b BodySpec) checkForm(p *diag.List) {
	if b.As != bodyJSON && b.As != bodyForm {
		p.Errorf("%q is not a form of a body: json or form", b.As)
	}
}

// readBody decodes the body as the hook says, if a parameter is taken from it.
func (h *Hook) readBody(in Input) (body, error) {
	wanted := false
	for _, p := range h.params {
		wanted = wanted || p.from[0] == "body"
	}
	switch {
	case !wanted || len(in.Body) == 0:
		return body{}, nil
	case h.Body.As == bodyForm:
		return readForm(in.Body)
	}
	v, err := strictjson.Decode(in.Body)
	if err != nil {
		return body{}, fmt.Errorf("%w: this hook reads JSON: %s", ErrBody, err.Error()) // for the sender to read
	}
	return body{json: v}, nil
}

// formStart are the characters that a form may begin with, beside letters and
// digits.
const formStart = "%&*+-.=_~"

// readForm refuses what begins as no form does: a JSON object for one. Without
// the check a signed JSON body would have a second reading, in which each "&" of
// its texts begins a field.
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
