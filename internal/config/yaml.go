package config

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// maxDepth is the maximum depth of nested values, because the parser is recursive.
const maxDepth = 64

// parseYAML returns the one mapping in data. It returns nil if data has another form or cannot be parsed, and reports
// each problem to r.
func parseYAML(data []byte, r *report) ast.Node {
	data = bytes.TrimPrefix(data, []byte("\ufeff")) // YAML 1.2.2, 5.2
	// All three are one line break (5.4), but the library counts some twice.
	data = bytes.ReplaceAll(bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n")), []byte("\r"), []byte("\n"))
	if !checkCharacters(data, r) {
		return nil
	}
	r.sources[r.file] = string(data)
	tokens := lexer.Tokenize(string(data))
	if !checkPlainYAML(tokens, r) {
		return nil
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey()) // the decoder reports all duplicates
	if err != nil {
		reportSyntax(err, r)
		return nil
	}
	// The parser makes a separate document of a directive, which was reported before.
	docs := file.Docs
	for len(docs) > 1 {
		if _, ok := docs[0].Body.(*ast.DirectiveNode); !ok {
			break
		}
		docs = docs[1:]
	}
	if len(docs) > 1 {
		at := place{line: 1, column: 1}
		if start := docs[1].Start; start != nil {
			at = tokenPlace(start)
		} else if docs[1].Body != nil {
			at = tokenPlace(docs[1].Body.GetToken())
		}
		r.addDiagnostic(at, "", "a second document starts here, and only one is read")
		return nil
	}
	if len(docs) == 0 || docs[0].Body == nil {
		r.addDiagnostic(place{line: 1, column: 1}, "", "there is nothing in this file")
		return nil
	}
	return docs[0].Body
}

// checkCharacters refuses characters that are not text (YAML 1.2.2, 5.1), so that a reader of the file sees what the
// program reads.
func checkCharacters(data []byte, r *report) bool {
	line := 1
	for n, rest := range bytes.Split(data, []byte("\n")) {
		line = n + 1
		column := 1
		for len(rest) > 0 {
			c, size := utf8.DecodeRune(rest)
			if c == utf8.RuneError && size == 1 {
				r.addDiagnostic(place{line: line, column: column}, "", "this is not UTF-8")
				return false
			}
			if c < ' ' && c != '\t' || c >= 0x7f && c < 0xa0 && c != 0x85 || c == 0xfffe || c == 0xffff ||
				isBidirectional(c) {
				r.addDiagnostic(place{line: line, column: column}, "",
					fmt.Sprintf("the character %U is not allowed here: write it as an escape in double quotes", c))
				return false
			}
			rest = rest[size:]
			column++
		}
	}
	return true
}

// isBidirectional reports whether c changes the order in which the following text is displayed.
func isBidirectional(c rune) bool {
	return c >= 0x202a && c <= 0x202e || c >= 0x2066 && c <= 0x2069
}

// checkPlainYAML reports the features of YAML that this file may not use. It returns false if the rest cannot be parsed
// safely.
func checkPlainYAML(tokens token.Tokens, r *report) bool {
	why := map[token.Type]string{
		token.AnchorType:     "anchors are not read: write the value where it is used",
		token.AliasType:      "aliases are not read: write the value here",
		token.MergeKeyType:   "merge keys are not read: write the keys here",
		token.TagType:        "tags are not read: quote what is meant as text",
		token.DirectiveType:  "directives are not read",
		token.MappingKeyType: `keys of the form "? key" are not read: write key: value`,
	}
	flow, dashes := 0, 0
	for _, t := range tokens {
		if text, ok := why[t.Type]; ok {
			r.addDiagnostic(tokenPlace(t), "", text)
		}
		switch t.Type { //nolint:exhaustive // only these open and close a level
		case token.MappingStartType, token.SequenceStartType:
			flow++
		case token.MappingEndType, token.SequenceEndType:
			flow--
		}
		if dashes++; t.Type != token.SequenceEntryType && t.Type != token.MappingKeyType {
			dashes = 0
		}
		if flow > maxDepth || dashes > maxDepth {
			r.addDiagnostic(tokenPlace(t), "", fmt.Sprintf("this is more than %d levels deep", maxDepth))
			return false
		}
	}
	return true
}

func reportSyntax(err error, r *report) {
	var s *yaml.SyntaxError
	if errors.As(err, &s) && s.Token != nil {
		text := "this is not YAML: " + s.Message
		if strings.Contains(s.Message, "must be specified") {
			text += " (text that contains one of []{}, must be in quotes here)"
		}
		r.addDiagnostic(tokenPlace(s.Token), "", text)
		return
	}
	line, _, _ := strings.Cut(err.Error(), "\n")
	r.addDiagnostic(place{line: 1, column: 1}, "", "this is not YAML: "+line)
}

func tokenPlace(t *token.Token) place { return place{line: t.Position.Line, column: t.Position.Column} }

// nodePlace returns the place where the text of a node begins. The token of a mapping is the colon of its first entry,
// so it does not show that.
func nodePlace(n ast.Node) place {
	switch n := n.(type) {
	case *ast.MappingNode:
		if !n.IsFlowStyle && len(n.Values) > 0 {
			return tokenPlace(n.Values[0].Key.GetToken())
		}
	case *ast.MappingValueNode:
		return tokenPlace(n.Key.GetToken())
	}
	return tokenPlace(n.GetToken())
}

// skipCharacters returns the place in the scalar that begins at p, after a number of its characters other than white
// space. Those come in the same order in every form of a scalar. source is the file.
func (p place) skipCharacters(source string, skip int) place {
	rest := []rune(source)
	at := place{line: 1, column: 1, file: p.file}
	next := func(n int) {
		for ; n > 0 && len(rest) > 0; n-- {
			if at.column++; rest[0] == '\n' {
				at.line, at.column = at.line+1, 1
			}
			rest = rest[1:]
		}
	}
	for len(rest) > 0 && at != p {
		next(1)
	}
	if len(rest) == 0 {
		return p
	}
	quote := rest[0]
	switch quote {
	case '|', '>':
		next(slices.Index(rest, '\n'))
	case '\'', '"':
		next(1)
	}
	for len(rest) > 0 {
		length, isSpace := scalarCharacter(rest, quote)
		if !isSpace {
			if skip == 0 {
				return at
			}
			skip--
		}
		next(length)
	}
	return p
}

// scalarCharacter returns the length of the next character in a scalar that begins with quote, and whether it is white
// space.
func scalarCharacter(rest []rune, quote rune) (length int, isSpace bool) {
	if len(rest) < 2 || quote != '"' || rest[0] != '\\' {
		if quote == '\'' && len(rest) > 1 && rest[0] == '\'' && rest[1] == '\'' {
			return 2, false
		}
		return 1, unicode.IsSpace(rest[0])
	}
	switch rest[1] { // YAML 1.2.2, 5.7
	case 'x':
		return 4, false
	case 'u':
		return 6, false
	case 'U':
		return 10, false
	}
	return 2, strings.ContainsRune("tn \t\nvfrNL_P", rest[1])
}
