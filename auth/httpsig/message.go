// Package httpsig verifies and makes HTTP message signatures (RFC 9421): a signature over the parts of a
// request that its Signature-Input lists, which a sender makes with a key that its keyid names.
//
// A receiver calls [Read], finds the key of [Message.KeyID], and then [Key.Verify], [Message.CheckCoverage]
// and [Message.CheckTime]. All three must succeed: a signature that covers too little proves nothing about
// the rest of the request. The package supports less than the RFC: one signature per request, components
// without parameters, and three algorithms. A request that uses more is refused. The package reads no clock
// and keeps no state.
package httpsig

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"sallyport/auth/field"

	"github.com/dunglas/httpsfv"
)

const (
	maxComponents = 256              // that a signature covers
	maxSkew       = 30 * time.Second // by which a sender's clock may be ahead
)

// Request is what of an HTTP request a signature can cover.
type Request struct {
	Method    string
	Authority string   // host, or host:port, that the request is for
	URL       *url.URL // path and query of the target, as they came
	Header    http.Header
	Body      []byte
}

// Message is a message signature that is well formed. It is not yet verified.
type Message struct {
	Components []string // that are covered, in their order
	Created    time.Time
	Expires    time.Time // zero without one
	KeyID      string
	Alg        string // empty without one, as the next two
	Nonce, Tag string
	Signature  []byte
	Base       []byte // what was signed (RFC 9421 2.5)
}

// Read returns the one signature of a request. Its fields must be written as RFC 9651 4.1 serializes
// them: so no parameter can occur twice, of which some readers use the first and others the last.
func Read(r *Request) (*Message, error) {
	label, member, err := readOnlyEntry(r, "Signature-Input")
	if err != nil {
		return nil, err
	}
	input, ok := member.(httpsfv.InnerList)
	if !ok {
		return nil, errors.New("has a Signature-Input that is not a list of components")
	}
	signed, member, err := readOnlyEntry(r, "Signature")
	if err != nil {
		return nil, err
	}
	item, ok := member.(httpsfv.Item)
	m := &Message{}
	m.Signature, _ = item.Value.([]byte)
	if !ok || len(m.Signature) == 0 || signed != label || len(item.Params.Names()) > 0 {
		return nil, errors.New("has a Signature that is not a byte sequence with the label of its Signature-Input")
	}
	if err := m.readParameters(input.Params); err != nil {
		return nil, err
	}
	return m, m.composeBase(input, r)
}

// readOnlyEntry returns the one entry of a dictionary.
func readOnlyEntry(r *Request, header string) (label string, member httpsfv.Member, err error) {
	dict, err := parseCanonical(r.Header.Get(header))
	if err != nil {
		return "", nil, fmt.Errorf("has a %s that %w", header, err)
	}
	names := dict.Names()
	if len(names) != 1 {
		return "", nil, fmt.Errorf("has a %s of %d entries, and must have one", header, len(names))
	}
	member, _ = dict.Get(names[0])
	return names[0], member, nil
}

// parseCanonical parses a dictionary that is written in the one form that RFC 9651 serializes.
func parseCanonical(value string) (*httpsfv.Dictionary, error) {
	dict, err := httpsfv.UnmarshalDictionary([]string{value})
	if err != nil {
		return nil, errors.New("is not a dictionary of RFC 9651")
	}
	if text, err := httpsfv.Marshal(dict); err != nil || text != value {
		return nil, errors.New("is not written as RFC 9651 serializes it, or has an entry or a parameter twice")
	}
	return dict, nil
}

// readParameters reads the parameters of RFC 9421 2.3. It requires keyid and created.
func (m *Message) readParameters(params *httpsfv.Params) error {
	for _, name := range params.Names() {
		value, _ := params.Get(name)
		text, isText := value.(string)
		number, isNumber := value.(int64)
		switch name {
		case "created":
			m.Created = time.Unix(number, 0)
		case "expires":
			m.Expires = time.Unix(number, 0)
		case "keyid":
			m.KeyID = text
		case "alg":
			m.Alg = text
		case "nonce":
			m.Nonce = text
		case "tag":
			m.Tag = text
		default:
			return errors.New("has a parameter other than created, expires, keyid, alg, nonce and tag")
		}
		isTime := name == "created" || name == "expires"
		if isTime != isNumber || isTime == isText || isText && !field.IsShort(text) {
			return fmt.Errorf("has a parameter %s of another type, or empty or too long", name)
		} else if isTime && !field.IsUnix(number) {
			return fmt.Errorf("has a parameter %s that is not a Unix time in seconds", name)
		}
	}
	if m.Created.IsZero() || m.KeyID == "" {
		return errors.New("lacks created or keyid")
	}
	return nil
}

// DerivedComponents returns the components of RFC 9421 2.2 that this package reads.
func DerivedComponents() []string {
	return []string{"@method", "@target-uri", "@authority", "@scheme", "@request-target", "@path", "@query"}
}

// IsComponent reports whether a signature may cover a component of this name: a derived one, or a
// header in lower case.
func IsComponent(name string) bool {
	if strings.HasPrefix(name, "@") {
		return slices.Contains(DerivedComponents(), name)
	}
	return field.IsToken(name) && name == strings.ToLower(name)
}

// composeBase makes the signature base (RFC 9421 2.5). Components with parameters are refused: each
// parameter would be one more way to cover less.
func (m *Message) composeBase(input httpsfv.InnerList, r *Request) error {
	if len(input.Items) > maxComponents {
		return fmt.Errorf("covers more than %d components", maxComponents)
	}
	var base strings.Builder
	for _, item := range input.Items {
		name, _ := item.Value.(string)
		if !IsComponent(name) || len(item.Params.Names()) > 0 || slices.Contains(m.Components, name) {
			return errors.New("covers a component that is not supported, or one component twice")
		}
		value, err := readComponent(name, r)
		if err != nil {
			return err
		}
		m.Components = append(m.Components, name)
		base.WriteString(`"` + name + `": ` + value + "\n")
	}
	params, err := httpsfv.Marshal(input)
	if err != nil {
		return errors.New("has a Signature-Input that cannot be serialized")
	}
	base.WriteString(`"@signature-params": ` + params)
	m.Base = []byte(base.String())
	return nil
}

// readComponent returns the value of a component (RFC 9421 2.1 and 2.2).
func readComponent(name string, r *Request) (string, error) {
	path := r.URL.EscapedPath()
	if path == "" {
		path = "/"
	}
	query := ""
	if r.URL.RawQuery != "" || r.URL.ForceQuery {
		query = "?" + r.URL.RawQuery
	}
	switch name {
	case "@method":
		return r.Method, nil
	case "@authority":
		return NormalizeAuthority(r.Authority), nil
	case "@scheme":
		return "https", nil
	case "@target-uri":
		return "https://" + NormalizeAuthority(r.Authority) + path + query, nil
	case "@request-target":
		return path + query, nil
	case "@path":
		return path, nil
	case "@query":
		return "?" + r.URL.RawQuery, nil
	}
	// Some readers join a header that occurs several times, and others do not; and a line break would
	// begin another component.
	values := r.Header[http.CanonicalHeaderKey(name)]
	if len(values) != 1 || strings.ContainsAny(values[0], "\r\n") {
		return "", errors.New("covers a header that is missing, or that occurs more than once")
	}
	return strings.Trim(values[0], " \t"), nil
}

// NormalizeAuthority returns the form of an authority that is signed (RFC 9421 2.2.3).
func NormalizeAuthority(a string) string {
	return strings.TrimSuffix(strings.ToLower(a), ":443")
}
