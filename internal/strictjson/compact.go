package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// ErrTooLong is the error of a value whose compact text is longer than allowed.
var ErrTooLong = errors.New("the compact text is too long")

// Compact returns the text of a JSON value without white space, of at most most bytes. The members of objects keep
// their order, numbers keep their digits, and each string has one form: only what must be escaped is escaped. data must
// be what Decode accepts.
func Compact(data []byte, most int) (string, error) {
	c := compacter{dec: json.NewDecoder(bytes.NewReader(data)), most: most}
	c.dec.UseNumber()
	c.strings = json.NewEncoder(&c.text)
	c.strings.SetEscapeHTML(false)
	err := c.copyValue(0)
	return c.text.String(), err
}

type compacter struct {
	dec     *json.Decoder
	text    bytes.Buffer
	strings *json.Encoder // to text
	most    int
}

func (c *compacter) copyValue(depth int) error {
	token, err := c.dec.Token()
	switch {
	case err != nil:
		return fmt.Errorf("not JSON: %w", err)
	case depth > maxDepth:
		return fmt.Errorf("more than %d levels deep", maxDepth)
	}
	open, isList := token.(json.Delim)
	if !isList {
		return c.writeScalar(token)
	}
	c.text.WriteString(open.String())
	for first := true; c.dec.More(); first = false {
		if !first {
			c.text.WriteByte(',')
		}
		if open == '{' {
			name, err := c.dec.Token()
			if err != nil {
				return fmt.Errorf("not JSON: %w", err)
			}
			if err := c.writeScalar(name); err != nil {
				return err
			}
			c.text.WriteByte(':')
		}
		if err := c.copyValue(depth + 1); err != nil {
			return err
		}
	}
	end, err := c.dec.Token()
	if err != nil {
		return fmt.Errorf("not JSON: %w", err)
	}
	return c.writeScalar(end)
}

// writeScalar writes a token that is not the start of a list or an object.
func (c *compacter) writeScalar(token json.Token) error {
	switch t := token.(type) {
	case json.Delim:
		c.text.WriteString(t.String())
	case json.Number:
		c.text.WriteString(t.String())
	default: // string, bool, nil
		if err := c.strings.Encode(t); err != nil {
			return fmt.Errorf("writing JSON: %w", err)
		}
		c.text.Truncate(c.text.Len() - 1) // Encode adds a line break
	}
	if c.text.Len() > c.most {
		return ErrTooLong
	}
	return nil
}

// Cut returns the text of the value at the path in data, which Decode accepts, or nil if Lookup finds none.
func (p Path) Cut(data []byte) []byte {
	for _, s := range p.steps {
		if !s.list {
			var members map[string]json.RawMessage
			if json.Unmarshal(data, &members) != nil {
				return nil
			}
			data = members[s.name]
			continue
		}
		var list []json.RawMessage
		i := s.index
		if json.Unmarshal(data, &list) != nil {
			return nil
		}
		if i < 0 {
			i += len(list)
		}
		if i < 0 || i >= len(list) {
			return nil
		}
		data = list[i]
	}
	return data
}
