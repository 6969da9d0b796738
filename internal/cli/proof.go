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

// credential is the flags that say how a request proves its sender.
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
	}
	for _, o := range c.schemeOptions() {
		if o.given {
			return o.name
		}
	}
	return ""
}

// makeSigner returns the function that makes the headers, or nil without a scheme.
func (c *credential) makeSigner() (client.RequestSigner, error) {
	if err := checkOptions(c.Scheme, c.schemeOptions()); err != nil {
		return nil, err
	}
	switch {
	case c.Scheme == "" && c.KeyFile == "":
		return nil, nil
	case c.Scheme == "":
		return nil, fmt.Errorf("--key-file needs --scheme: %w", client.ErrUsage)
	case c.KeyFile == "":
		return nil, fmt.Errorf("--scheme %s needs --key-file: %w", c.Scheme, client.ErrUsage)
	}
	key, err := os.ReadFile(c.KeyFile)
	if at := new(fs.PathError); errors.As(err, &at) { // the path may be the key itself, given by mistake
		return nil, fmt.Errorf("reading the file of --key-file: %w", at.Err)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the file of --key-file: %w", err)
	}
	key = bytes.TrimSuffix(bytes.TrimSuffix(key, []byte("\n")), []byte("\r"))
	if c.Scheme == "signature" {
		return client.Signature(c.Kid, c.Tag, key)
	}
	sign, err := c.makeBodySigner(key)
	if err != nil {
		return nil, err
	}
	return sign.Requests(), nil
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
	switch p.DataFile {
	case "":
		return []byte(p.Data), nil
	case "-":
		return io.ReadAll(in)
	}
	return os.ReadFile(p.DataFile)
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

func (t *transport) makeClient(c *credential, o client.Options) (*client.Client, error) {
	sign, err := c.makeSigner()
	if err != nil {
		return nil, err
	}
	o.Sign, o.CA, o.Cert, o.Key, o.Now = sign, t.CA, t.Cert, t.Key, time.Now
	return client.New(o)
}
