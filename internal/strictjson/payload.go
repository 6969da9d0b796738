package strictjson

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// payloadField begins a body that is a form with the field payload. No JSON begins like this, so the bytes alone
// decide how a body is read.
const payloadField = "payload="

// IsWrapped reports whether a body begins as a form with the field payload.
func IsWrapped(body []byte) bool { return bytes.HasPrefix(body, []byte(payloadField)) }

// Unwrap returns the JSON of a body from a sender that sends JSON as it is, or in a form whose only field is payload.
// A body that does not begin as such a form is returned as it is.
func Unwrap(body []byte) ([]byte, error) {
	if !IsWrapped(body) {
		return body, nil
	}
	var b bytes.Buffer
	b.Grow(len(body))
	err := WriteUnwrapped(&b, body)
	return b.Bytes(), err
}

// WriteUnwrapped writes what Unwrap returns. It takes little memory, so it can be used for a body that is not verified
// yet. The only errors are those of a malformed form.
func WriteUnwrapped(w io.Writer, body []byte) error {
	value, ok := bytes.CutPrefix(body, []byte(payloadField))
	if !ok {
		_, _ = w.Write(body) // to a hash or a buffer, which do not fail
		return nil
	}
	var chunk [1 << 10]byte
	for i := 0; i < len(value); {
		n := 0
		for ; n < len(chunk) && i < len(value); n++ {
			c := value[i]
			i++
			switch {
			case c == '+':
				c = ' '
			case c == '%' && i+2 <= len(value) && digitValue(value[i])|digitValue(value[i+1]) < 16:
				c = digitValue(value[i])<<4 | digitValue(value[i+1])
				i += 2
			case c == '%' || c == '&' || c == ';' || c <= ' ' || c == 0x7f:
				return explainUnescaped(c)
			}
			chunk[n] = c
		}
		_, _ = w.Write(chunk[:n])
	}
	return nil
}

func explainUnescaped(c byte) error {
	switch c {
	case '%':
		return errors.New("the form has % without two hex digits")
	case '&', ';': // some readers begin a new field at a semicolon
		return errors.New("the form has more than the field payload")
	}
	return fmt.Errorf("the form has %q, which is not escaped", c)
}

// digitValue returns the value of a hex digit, and 16 for another character.
func digitValue(c byte) byte {
	if d := c - '0'; d < 10 {
		return d
	}
	if d := c&^0x20 - 'A'; d < 6 {
		return d + 10
	}
	return 16
}
