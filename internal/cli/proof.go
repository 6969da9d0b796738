package cli

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"sallyport/internal/client"
)

// credential is the flags that say how a request proves its sender. It has many fields because each is a flag.
type credential struct {
	Scheme   string            `placeholder:"NAME" help:"A preset such as github, or signature, jwt, token."`
	KeyFile  string            `placeholder:"FILE" help:"Secret, PEM private key, or token."`
	Header   string            `placeholder:"NAME" help:"token: header that carries the token. Default: Authorization."`
	Prefix   *string           `placeholder:"TEXT" help:"token: text before the token. Default: \"Bearer \"."`
	Alg      string            `help:"jwt: algorithm. Default: HS256."`
	Kid      string            `help:"jwt and signature: key id."`
	Tag      string            `help:"signature: tag."`
	Issuer   string            `help:"jwt: iss."`
	Audience string            `help:"jwt: aud."`
	Subject  string            `help:"jwt: sub."`
	Claim    map[string]string `placeholder:"NAME=TEXT" help:"jwt: add a claim with a string value."`

	TokenFile string `name:"from-token-file" placeholder:"FILE" help:"Ready token, for example of OIDC; read again for each request." xor:"token"`
	TokenEnv  string `placeholder:"NAME" help:"Ready token, in this environment variable." xor:"token"`
}

// payload is the flags for the content of a delivery.
type payload struct {
	ID       string `help:"Id of the delivery. Default: a random one."`
	Data     string `short:"d" help:"Body." xor:"body"`
	DataFile string `placeholder:"FILE" help:"Body, from a file; - for stdin." xor:"body"`
}

// option is a flag that only some schemes use.
type option struct {
	name    string
	given   bool
	schemes []string
}

func (c *credential) schemeOptions() []option {
	token, jwt, signature := []string{"token"}, []string{"jwt"}, []string{"signature"}
	return []option{
		{"header", c.Header != "", token},
		{"prefix", c.Prefix != nil, token},
		{"alg", c.Alg != "", jwt},
		{"kid", c.Kid != "", []string{"jwt", "signature"}},
		{"tag", c.Tag != "", signature},
		{"issuer", c.Issuer != "", jwt},
		{"audience", c.Audience != "", jwt},
		{"subject", c.Subject != "", jwt},
		{"claim", len(c.Claim) > 0, jwt},
	}
}

// checkOptions refuses flags that the scheme does not use: if they were ignored, the user would believe that they have
// an effect.
func checkOptions(scheme string, options []option) error {
	for _, o := range options {
		if !o.given || slices.Contains(o.schemes, scheme) {
			continue
		}
		is := cmp.Or(scheme, "missing")
		return fmt.Errorf("--%s is for --scheme %s, but --scheme is %s: %w",
			o.name, strings.Join(o.schemes, " or "), is, client.ErrUsage)
	}
	return nil
}

// firstFlag returns the name of a flag of the credential that was given, or an empty string.
func (c *credential) firstFlag() string {
	switch {
	case c.Scheme != "":
		return "scheme"
	case c.KeyFile != "":
		return "key-file"
	case c.TokenFile != "":
		return "from-token-file"
	case c.TokenEnv != "":
		return "token-env"
	}
	for _, o := range c.schemeOptions() {
		if o.given {
			return o.name
		}
	}
	return ""
}

// makeSigner returns the function that makes the headers, or nil without a scheme.
func (c *credential) makeSigner(env func(string) (string, bool)) (client.RequestSigner, error) {
	if err := checkOptions(c.Scheme, c.schemeOptions()); err != nil {
		return nil, err
	}
	ready := c.TokenFile != "" || c.TokenEnv != ""
	switch {
	case ready && (c.Scheme != "" || c.KeyFile != ""):
		return nil, fmt.Errorf("a ready token has no --scheme or --key-file: %w", client.ErrUsage)
	case ready:
		return c.makeTokenSigner(env), nil
	case c.Scheme == "" && c.KeyFile == "":
		return nil, nil
	case c.Scheme == "":
		return nil, fmt.Errorf("--key-file needs --scheme: %w", client.ErrUsage)
	case c.KeyFile == "":
		return nil, fmt.Errorf("--scheme %s needs --key-file: %w", c.Scheme, client.ErrUsage)
	}
	key, err := readSecret("key-file", c.KeyFile)
	if err != nil {
		return nil, err
	}
	if c.Scheme == "signature" {
		return client.Signature(c.Kid, c.Tag, key)
	}
	sign, err := c.makeBodySigner(key)
	if err != nil {
		return nil, err
	}
	return sign.Requests(), nil
}

// readSecret reads the file that a flag names, without a line end at its end.
func readSecret(flag, file string) ([]byte, error) {
	secret, err := os.ReadFile(file)
	if at := new(fs.PathError); errors.As(err, &at) { // the path may be the secret itself, given by mistake
		err = at.Err
	}
	if err != nil {
		return nil, fmt.Errorf("reading the file of --%s: %w", flag, err)
	}
	return bytes.TrimSuffix(bytes.TrimSuffix(secret, []byte("\n")), []byte("\r")), nil
}

// makeTokenSigner returns the function that makes the header with the ready token. A platform may replace the file
// before the token expires, so each request reads it.
func (c *credential) makeTokenSigner(env func(string) (string, bool)) client.RequestSigner {
	return func(_ *http.Request, id string, body []byte, at time.Time) (http.Header, error) {
		token, given := "", true
		if c.TokenFile != "" {
			read, err := readSecret("from-token-file", c.TokenFile)
			if err != nil {
				return nil, err
			}
			token = string(read)
		} else {
			token, given = env(c.TokenEnv)
		}
		if !given || token == "" { // the name may be the token itself, given by mistake
			return nil, fmt.Errorf("there is no token in the file or the variable that the flag names: %w",
				client.ErrUsage)
		}
		sign, err := client.Static("Authorization", "Bearer "+token)
		if err != nil {
			return nil, err
		}
		return sign(id, body, at)
	}
}

func (c *credential) makeBodySigner(key []byte) (client.Signer, error) {
	switch c.Scheme {
	case "token":
		header, prefix := http.CanonicalHeaderKey(cmp.Or(c.Header, "Authorization")), ""
		switch {
		case header != "Authorization" && c.Prefix != nil:
			return nil, fmt.Errorf("--prefix is for the header Authorization: %w", client.ErrUsage)
		case c.Prefix != nil:
			prefix = *c.Prefix
		case header == "Authorization":
			prefix = "Bearer "
		}
		return client.Static(header, prefix+string(key))
	case "jwt":
		claims := make(map[string]any, len(c.Claim))
		for name, value := range c.Claim {
			claims[name] = value
		}
		return client.JWT{
			Alg: cmp.Or(c.Alg, "HS256"), KeyID: c.Kid, Issuer: c.Issuer, Audience: c.Audience, Subject: c.Subject,
			Claims: claims,
		}.Signer(key)
	}
	return client.HMAC(c.Scheme, key)
}

func (p *payload) readBody(in io.Reader) ([]byte, error) {
	if p.DataFile == "" {
		return []byte(p.Data), nil
	}
	return ReadInput(p.DataFile, in)
}

// ReadInput returns the content of a file that a flag names; - is stdin.
func ReadInput(name string, stdin io.Reader) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(stdin)
	}
	return os.ReadFile(name)
}

// transport is the flags that say how to reach a server.
type transport struct {
	CA   string `name:"ca" placeholder:"FILE" help:"Trust this CA instead of the system's."`
	Cert string `placeholder:"FILE" help:"Client certificate, PEM." and:"cert"`
	Key  string `placeholder:"FILE" help:"Key of the client certificate, PEM." and:"cert"`
}

// firstFlag returns the name of a flag that was given, or an empty string.
func (t *transport) firstFlag() string {
	switch {
	case t.CA != "":
		return "ca"
	case t.Cert != "":
		return "cert"
	}
	return ""
}

func (t *transport) makeClient(s *Streams, c *credential, o client.Options) (*client.Client, error) {
	sign, err := c.makeSigner(s.LookupEnv)
	if err != nil {
		return nil, err
	}
	o.Sign, o.CA, o.Cert, o.Key, o.Now = sign, t.CA, t.Cert, t.Key, time.Now
	return client.New(o)
}
