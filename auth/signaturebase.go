package auth

import (
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"sallyport/auth/field"

	"github.com/dunglas/httpsfv"
)

const maxComponents = 256 // that a signature covers

// message is a message signature that is well formed, and not yet verified.
type message struct {
	components []string // as they are covered, in their order
	created    time.Time
	expires    bool // there is an expiry
	expiry     time.Time
	keyID      string
	alg        string // empty if it is not said, as the next two
	nonce, tag string
	signature  []byte
	base       []byte // what was signed (RFC 9421 2.5)
}

// readMessage reads the one signature that a delivery has. Its fields must be
// spelt as RFC 9651 4.1 serializes them: that leaves no room for a parameter
// that stands there twice, of which some readers take the first, others the last.
func readMessage(d *Delivery) (*message, error) {
	label, member, err := only(d, "Signature-Input")
	if err != nil {
		return nil, err
	}
	input, ok := member.(httpsfv.InnerList)
	if !ok {
		return nil, errors.New("has a Signature-Input that is no list of components")
	}
	signed, member, err := only(d, "Signature")
	if err != nil {
		return nil, err
	}
	item, ok := member.(httpsfv.Item)
	m := &message{}
	if m.signature, _ = item.Value.([]byte); !ok || len(m.signature) == 0 || signed != label || len(item.Params.Names()) > 0 {
		return nil, errors.New("has a Signature that is no byte sequence of the label of its Signature-Input")
	}
	if err := m.readParameters(input.Params); err != nil {
		return nil, err
	}
	return m, m.compose(input, d)
}

// only returns the one entry of a dictionary.
func only(d *Delivery, field string) (label string, member httpsfv.Member, err error) {
	dict, err := canonical(d.Header.Get(field))
	if err != nil {
		return "", nil, fmt.Errorf("has a %s that %w", field, err)
	}
	names := dict.Names()
	if len(names) != 1 {
		return "", nil, fmt.Errorf("has a %s of %d entries, and only one is read", field, len(names))
	}
	member, _ = dict.Get(names[0])
	return names[0], member, nil
}

func canonical(value string) (*httpsfv.Dictionary, error) {
	dict, err := httpsfv.UnmarshalDictionary([]string{value})
	if err != nil {
		return nil, errors.New("is no dictionary of RFC 9651")
	}
	if text, err := httpsfv.Marshal(dict); err != nil || text != value {
		return nil, errors.New("is not spelt as RFC 9651 serializes it, or has an entry or a parameter twice")
	}
	return dict, nil
}

// readParameters is RFC 9421 2.3, with keyid and created required.
func (m *message) readParameters(params *httpsfv.Params) error {
	for _, name := range params.Names() {
		value, _ := params.Get(name)
		text, isText := value.(string)
		number, isNumber := value.(int64)
		switch name {
		case "created":
			m.created = time.Unix(number, 0)
		case "expires":
			m.expires, m.expiry = true, time.Unix(number, 0)
		case "keyid":
			m.keyID = text
		case "alg":
			m.alg = text
		case "nonce":
			m.nonce = text
		case "tag":
			m.tag = text
		default:
			return errors.New("has a parameter that is none of created, expires, keyid, alg, nonce and tag")
		}
		if isTime := name == "created" || name == "expires"; isTime != isNumber || isTime == isText || isText && !field.IsShort(text) {
			return fmt.Errorf("has a parameter %s of another type, or empty or too long", name)
		} else if isTime && !field.IsUnix(number) {
			return fmt.Errorf("has a parameter %s that is not a Unix time in seconds", name)
		}
	}
	if m.created.IsZero() || m.keyID == "" {
		return errors.New("lacks created or keyid")
	}
	return nil
}

// derivedComponents are those of RFC 9421 2.2 that are read here.
func derivedComponents() []string {
	return []string{"@method", "@target-uri", "@authority", "@scheme", "@request-target", "@path", "@query"}
}

func isComponent(name string) bool {
	if strings.HasPrefix(name, "@") {
		return slices.Contains(derivedComponents(), name)
	}
	return field.IsToken(name) && name == strings.ToLower(name)
}

// compose makes the signature base (RFC 9421 2.5). Components have no
// parameters here: each of them would be one more way to cover less.
func (m *message) compose(input httpsfv.InnerList, d *Delivery) error {
	if len(input.Items) > maxComponents {
		return errors.New("covers too much")
	}
	var base strings.Builder
	for _, item := range input.Items {
		name, _ := item.Value.(string)
		if !isComponent(name) || len(item.Params.Names()) > 0 || slices.Contains(m.components, name) {
			return errors.New("covers what is not read here, or the same twice")
		}
		value, err := component(name, d)
		if err != nil {
			return err
		}
		m.components = append(m.components, name)
		base.WriteString(`"` + name + `": ` + value + "\n")
	}
	params, err := httpsfv.Marshal(input)
	if err != nil {
		return errors.New("has a Signature-Input that cannot be written again")
	}
	base.WriteString(`"@signature-params": ` + params)
	m.base = []byte(base.String())
	return nil
}

// component returns the value of a component (RFC 9421 2.1 and 2.2).
func component(name string, d *Delivery) (string, error) {
	path := d.URL.EscapedPath()
	if path == "" {
		path = "/"
	}
	query := ""
	if d.URL.RawQuery != "" || d.URL.ForceQuery {
		query = "?" + d.URL.RawQuery
	}
	switch name {
	case "@method":
		return d.Method, nil
	case "@authority":
		return normalAuthority(d.Authority), nil
	case "@scheme":
		return "https", nil
	case "@target-uri":
		return "https://" + normalAuthority(d.Authority) + path + query, nil
	case "@request-target":
		return path + query, nil
	case "@path":
		return path, nil
	case "@query":
		return "?" + d.URL.RawQuery, nil
	}
	// A field that is there several times is one for some readers and many for
	// others, and a line break would begin a component of its own.
	values := d.Header[http.CanonicalHeaderKey(name)]
	if len(values) != 1 || strings.ContainsAny(values[0], "\r\n") {
		return "", errors.New("covers a header that is not there, or more than once")
	}
	return strings.Trim(values[0], " \t"), nil
}

// normalAuthority is RFC 9421 2.2.3.
func normalAuthority(a string) string {
	return strings.TrimSuffix(strings.ToLower(a), ":443")
}

// checkDigest compares the digests of RFC 9530 2 with the body. At least one
// must be of a hash that nobody can forge; of others nothing is known.
func checkDigest(value string, body []byte) error {
	dict, err := canonical(value)
	if err != nil {
		return err
	}
	known := false
	for _, name := range dict.Names() {
		var sum []byte
		switch name {
		case "sha-256":
			s := sha256.Sum256(body)
			sum = s[:]
		case "sha-512":
			s := sha512.Sum512(body)
			sum = s[:]
		default:
			continue
		}
		member, _ := dict.Get(name)
		item, _ := member.(httpsfv.Item)
		if want, _ := item.Value.([]byte); subtle.ConstantTimeCompare(want, sum) != 1 {
			return errors.New("is not that of the body")
		}
		known = true
	}
	if !known {
		return errors.New("has no sha-256 and no sha-512")
	}
	return nil
}
