package importer

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// text is text in the configuration. It is written so that every reader of YAML takes it for text.
type text string

var plainText = regexp.MustCompile(`^[A-Za-z/][A-Za-z0-9_./-]*$`)

// isPlain reports whether text needs no quotes.
func isPlain(s string) bool {
	words := []string{"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
	return plainText.MatchString(s) && !slices.Contains(words, strings.ToLower(s))
}

// MarshalYAML implements yaml.BytesMarshaler.
func (t text) MarshalYAML() ([]byte, error) {
	s := string(t)
	switch {
	case isPlain(s):
		return []byte(s), nil
	case strings.ContainsAny(s, `\"`) && !strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }):
		return []byte("'" + strings.ReplaceAll(s, "'", "''") + "'"), nil
	}
	return []byte(strconv.Quote(s)), nil
}

// texts returns a list of text.
func texts(list []string) []text {
	out := make([]text, len(list))
	for i, s := range list {
		out[i] = text(s)
	}
	return out
}
