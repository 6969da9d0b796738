package cli

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"time"

	"sallyport/auth"
	"sallyport/internal/client"
	"sallyport/internal/pathsafe"
)

// Keys makes keys.
type Keys struct {
	New keysNew `cmd:"" help:"Make a key, and print the line that puts it under keys."`
}

type keysNew struct {
	Scheme string `arg:"" help:"What the key is for: a preset such as github, signature, jwt or token."`
	Alg    string `help:"jwt: HS256 (the default), RS256, ES256 or EdDSA; signature: ed25519 (the default), ecdsa-p256-sha256 or hmac-sha256; standard-webhooks and svix: ed25519."`
	ID     string `help:"Id of the key. Default: today's date."`
	Out    string `placeholder:"FILE" help:"New file; a public key goes to FILE.pub. - is stdout. Default: SCHEME-ID."`
}

// Run makes the files. It prints a secret only with --out -.
func (cmd *keysNew) Run(s *Streams) error {
	key, err := auth.GenerateKey(cmd.Scheme, cmd.Alg)
	if err != nil {
		return fmt.Errorf("%w: %w", err, client.ErrUsage)
	}
	id := cmp.Or(cmd.ID, time.Now().Format(time.DateOnly))
	file := cmp.Or(cmd.Out, cmd.Scheme+"-"+id)
	if cmd.Out == "-" {
		_, _ = fmt.Fprintf(s.Err, "- {id: %q, file: FILE}\n", id)
		_, err := s.Out.Write(append(key.Secret, key.Public...))
		return err
	}
	if err := pathsafe.CreateFile(file, bytes.NewReader(key.Secret)); err != nil {
		return fmt.Errorf("writing the key: %w", err)
	}
	if key.Public != nil {
		if err := pathsafe.CreateFile(file+".pub", bytes.NewReader(key.Public)); err != nil {
			return errors.Join(fmt.Errorf("writing the key: %w", err), os.Remove(file))
		}
		_, _ = fmt.Fprintf(s.Err, "%s is for the sender alone; the server needs %s.pub\n", file, file)
		file += ".pub"
	}
	_, err = fmt.Fprintf(s.Out, "- {id: %q, file: %q}\n", id, file)
	return err
}
