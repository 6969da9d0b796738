package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"time"

	"sallyport/internal/client"
)

// proof is how a delivery proves who sends it, and what it carries.
type proof struct {
	Scheme   string            `placeholder:"NAME" help:"How to sign: a preset such as github, signature (RFC 9421), jwt, or token. None for a client certificate alone."`
	KeyFile  string            `placeholder:"FILE" help:"The secret; for jwt and signature the secret or a PEM private key; for token the token."`
	ID       string            `help:"Id of the delivery. Default: a random one."`
	Data     string            `short:"d" help:"Body." xor:"body"`
	DataFile string            `placeholder:"FILE" help:"Body, from a file; - for stdin." xor:"body"`
	Header   string            `default:"Authorization" help:"token: the header that holds it."`
	Prefix   string            `default:"${bearer}" help:"token: what stands before it in Authorization."`
	Alg      string            `default:"HS256" help:"jwt: algorithm."`
	Kid      string            `help:"jwt and signature: key id."`
	Tag      string            `help:"signature: tag."`
	Issuer   string            `help:"jwt: iss."`
	Audience string            `help:"jwt: aud."`
	Subject  string            `help:"jwt: sub."`
	Claim    map[string]string `placeholder:"NAME=TEXT" help:"jwt: one more claim, a string."`
}

// signer returns what makes the headers; nil without a scheme.
func (p *proof) signer() (client.RequestSigner, error) {
	if p.Scheme == "" {
		return nil, nil
	}
	if p.KeyFile == "" {
		return nil, fmt.Errorf("--scheme %s needs --key-file: %w", p.Scheme, client.ErrUsage)
	}
	key, err := os.ReadFile(p.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("reading the key: %w", err)
	}
	key = bytes.TrimSuffix(bytes.TrimSuffix(key, []byte("\n")), []byte("\r"))
	if p.Scheme == "signature" {
		return client.Signature(p.Kid, p.Tag, key)
	}
	sign, err := p.bodySigner(key)
	if err != nil {
		return nil, err
	}
	return sign.Requests(), nil
}

func (p *proof) bodySigner(key []byte) (client.Signer, error) {
	switch p.Scheme {
	case "token":
		prefix := ""
		if p.Header == "Authorization" {
			prefix = p.Prefix
		}
		return client.Static(p.Header, prefix+string(key))
	case "jwt":
		claims := make(map[string]any, len(p.Claim))
		for name, value := range p.Claim {
			claims[name] = value
		}
		return client.JWT{
			Alg: p.Alg, KeyID: p.Kid, Issuer: p.Issuer, Audience: p.Audience, Subject: p.Subject, Claims: claims,
		}.Signer(key)
	}
	return client.HMAC(p.Scheme, key)
}

func (p *proof) body(in io.Reader) ([]byte, error) {
	switch p.DataFile {
	case "":
		return []byte(p.Data), nil
	case "-":
		return io.ReadAll(in)
	}
	return os.ReadFile(p.DataFile)
}

// transport is how a server is reached.
type transport struct {
	CA   string `name:"ca" placeholder:"FILE" help:"Trust this CA instead of the system's."`
	Cert string `placeholder:"FILE" help:"Client certificate, PEM." and:"cert"`
	Key  string `placeholder:"FILE" help:"Its key, PEM." and:"cert"`
}

func (t *transport) client(p *proof, o client.Options) (*client.Client, error) {
	sign, err := p.signer()
	if err != nil {
		return nil, err
	}
	o.Sign, o.CA, o.Cert, o.Key, o.Now = sign, t.CA, t.Cert, t.Key, time.Now
	return client.New(o)
}
