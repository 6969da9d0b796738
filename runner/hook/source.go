package hook

import (
	"fmt"
	"net/textproto"
	"regexp"
	"slices"
	"strings"

	"sallyport/internal/diag"
	"sallyport/internal/strictjson"
)

// From is where a parameter is taken from, as the file writes it: one path, such as body.head_commit.id or
// claim["kubernetes.io"].namespace, or a list of paths. A list that begins with a bare name is one path in pieces,
// which may contain dots: [claim, kubernetes.io, namespace]. A bare name is not a path of a value, so no list is both.
type From []string

// isSource reports whether a path may begin with a name: the parts of a delivery that have values.
func isSource(name string) bool {
	return slices.Contains([]string{"body", "query", "header", "claim"}, name)
}

// UnmarshalYAML reads a text or a list of texts.
func (f *From) UnmarshalYAML(decode func(any) error) error {
	var list []string
	if decode(&list) == nil {
		*f = list
		return nil
	}
	var path string
	if err := decode(&path); err != nil {
		return err
	}
	*f = From{path}
	return nil
}

// inPieces reports whether f is one path in pieces.
func (f From) inPieces() bool { return len(f) > 1 && !strings.ContainsAny(f[0], ".[") }

func (f From) String() string {
	if f.inPieces() {
		return strictjson.NamesPath(f[0], f[1:]...).String()
	}
	return strings.Join(f, ", else ")
}

// compile returns the valid paths of f, in order, and adds the problems of the others to p. as is the format of the
// body.
func (f From) compile(as string, p *diag.List) (paths []strictjson.Path) {
	if f.inPieces() {
		path, err := f.joinPieces()
		if err == nil {
			err = checkSource(path, as)
		}
		if err != nil {
			p.Errorf("%v", err)
		}
		return []strictjson.Path{path}
	}
	if len(f) == 0 {
		p.Errorf("does not say where the value comes from: body, query, header or claim, as in body.date")
	}
	for i, text := range f {
		at := p
		if len(f) > 1 {
			at = p.Index(i)
		}
		path, err := strictjson.ParsePath(text)
		if err == nil {
			err = checkSource(path, as)
		}
		switch {
		case err != nil:
			at.Errorf("%v", err)
		case slices.Index(f, text) < i:
			at.Errorf("%q is listed twice", text)
		default:
			paths = append(paths, path)
		}
	}
	return paths
}

// joinPieces returns the path that is written in pieces.
func (f From) joinPieces() (strictjson.Path, error) {
	path := strictjson.NamesPath(f[0], f[1:]...)
	if slices.Contains(f, "") {
		return path, fmt.Errorf("%q has an empty name", strings.Join(f, "."))
	}
	for _, piece := range f[1:] {
		if other, err := strictjson.ParsePath(piece); err == nil && other.Root() != piece &&
			isSource(other.Root()) {
			return path, fmt.Errorf("begins with the bare name %q: "+
				"write %s for one path, or %s.NAME for one of several", f[0], path, f[0])
		}
	}
	return path, nil
}

// checkSource returns an error if no delivery could have a value at the path.
func checkSource(path strictjson.Path, as string) error {
	names, plain := path.Names()
	switch root := path.Root(); {
	case !isSource(root):
		return fmt.Errorf("%q is not a source: write body, query, header or claim", root)
	case plain && len(names) == 0:
		return fmt.Errorf("%q names no member of the %s", path, root)
	case (root == "query" || root == "header") && !plain:
		return fmt.Errorf("%q: a %s is not a list", path, root)
	case (root == "query" || root == "header") && len(names) != 1:
		name := strings.Join(names, ".")
		return fmt.Errorf("%q: a %s has one name, write %s if it has dots", path, root,
			strictjson.NamesPath(root, name))
	case root == "header" && !isHeaderName(names[0]):
		return fmt.Errorf("%q: this is not the name of a header", path)
	case root == "header" && isConnectionHeader(names[0]):
		return fmt.Errorf("%q: the server never has this header: it belongs to the connection", path)
	case root == "body" && as == bodyForm && !plain:
		return fmt.Errorf("%q: a form has no lists; write a field's name in quotes if it has brackets", path)
	}
	return nil
}

var headerNameForm = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$") // RFC 9110, 5.6.2

func isHeaderName(name string) bool { return headerNameForm.MatchString(name) }

// isConnectionHeader reports whether net/http removes a header from those of the request.
func isConnectionHeader(name string) bool {
	return slices.Contains([]string{"Host", "Transfer-Encoding", "Trailer"}, textproto.CanonicalMIMEHeaderKey(name))
}

// lookup returns the value at a path, or an error that says what is missing.
func (in Input) lookup(path strictjson.Path, b *body) (any, error) {
	names, _ := path.Names()
	var v any
	switch root := path.Root(); {
	case root == "query":
		v = singleValue(in.Query[names[0]])
	case root == "header":
		v = singleValue(in.Header[textproto.CanonicalMIMEHeaderKey(names[0])])
	case root == "claim":
		return path.Lookup(in.Claims)
	case b.form != nil:
		if v = singleValue(b.form[strings.Join(names, ".")]); v == nil {
			return nil, fmt.Errorf("no %s in the form", path)
		}
	default:
		return path.Lookup(b.json)
	}
	if v == nil {
		return nil, fmt.Errorf("no %s", path)
	}
	return v, nil
}
