// Package strictjson reads JSON from outside in the one way that leaves no room for two readers to disagree: RFC 8259
// with the unique names of RFC 7493 (I-JSON), valid UTF-8, whole surrogate pairs, one value and nothing after it,
// bounded depth.
//
// [Decode] returns the value or an error, never a part of it. Numbers keep their digits. [Lookup] follows names, and a
// [Path] of a configuration file also follows indexes of lists. An error contains names from the document, so it is for
// the log and not for other senders.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

const maxDepth = 64

// Decode returns the value in data as nil, bool, string, json.Number, []any or
// map[string]any.
func Decode(data []byte) (any, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("not valid UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	v, err := decodeValue(dec, 0)
	if err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON value")
	}
	if loneSurrogate(data) {
		return nil, errors.New("an escape is half of a surrogate pair")
	}
	return v, nil
}

// loneSurrogate looks through valid JSON for what RFC 7493, 2.1 forbids: the decoder replaces it by U+FFFD, and another
// reader may do something else.
func loneSurrogate(data []byte) bool {
	for {
		i := bytes.IndexByte(data, '\\')
		if i < 0 {
			return false
		}
		data = data[i:]
		r, escaped := decodeEscape(data)
		switch {
		case !escaped:
			data = data[2:]
		case !utf16.IsSurrogate(r):
			data = data[6:]
		default:
			low, _ := decodeEscape(data[6:])
			if utf16.DecodeRune(r, low) == utf8.RuneError {
				return true
			}
			data = data[12:]
		}
	}
}

// decodeEscape reads the escape of a UTF-16 code unit at the start of data.
func decodeEscape(data []byte) (rune, bool) {
	if len(data) < 6 || data[0] != '\\' || data[1] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(data[2:6]), 16, 16)
	return rune(n), err == nil
}

func decodeValue(dec *json.Decoder, depth int) (any, error) {
	tok, err := dec.Token()
	if err != nil {
		return nil, fmt.Errorf("not JSON: %w", err)
	}
	delim, ok := tok.(json.Delim)
	if !ok {
		return tok, nil
	}
	if depth == maxDepth {
		return nil, fmt.Errorf("more than %d levels deep", maxDepth)
	}
	if delim == '[' {
		return decodeArray(dec, depth)
	}
	return decodeObject(dec, depth)
}

func decodeArray(dec *json.Decoder, depth int) (any, error) {
	list := []any{}
	for dec.More() {
		v, err := decodeValue(dec, depth+1)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	_, err := dec.Token()
	return list, err
}

func decodeObject(dec *json.Decoder, depth int) (any, error) {
	members := map[string]any{}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, fmt.Errorf("not JSON: %w", err)
		}
		name, _ := tok.(string) // the decoder only returns strings here
		if _, twice := members[name]; twice {
			return nil, fmt.Errorf("the name %q occurs twice in one object", name)
		}
		if members[name], err = decodeValue(dec, depth+1); err != nil {
			return nil, err
		}
	}
	_, err := dec.Token()
	return members, err
}

// Lookup follows a path of object keys from v. It reports false if a key is missing, if the value is null, or if a
// value on the path is not an object.
func Lookup(v any, path ...string) (any, bool) {
	found, err := NamesPath("", path...).Lookup(v)
	return found, err == nil
}
