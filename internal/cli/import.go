package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"sallyport/internal/importer"
	"sallyport/internal/pathsafe"
	"sallyport/internal/terminal"
)

// Import prints a configuration that is made from a hooks file of adnanh/webhook.
type Import struct {
	File    string `arg:"" help:"The hooks file, JSON or YAML."`
	Secrets string `placeholder:"DIR" help:"Write the secrets to new files in this folder. Default: only say which files to create."`
}

// leastSecret is the least length of a secret that the configuration accepts, in bytes.
const leastSecret = 16

// Run prints the configuration, and what is left out to standard error. A hook that cannot be imported makes the exit
// code 1.
func (cmd *Import) Run(s *Streams) error {
	data, err := os.ReadFile(cmd.File)
	if err != nil {
		return err
	}
	folder := cmd.Secrets
	if folder == "" {
		folder = "secrets"
	}
	result, err := importer.Import(data, folder)
	if err != nil {
		return fmt.Errorf("%s: %w", cmd.File, err)
	}
	messages := terminal.Writer(s.Err)
	for _, n := range result.Notes {
		_, _ = fmt.Fprintln(messages, n)
	}
	for _, secret := range result.Secrets {
		text, err := cmd.placeSecret(secret)
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintln(messages, text)
	}
	if _, err := s.Out.Write(result.YAML); err != nil {
		return err
	}
	if result.Refused() > 0 {
		return ExitCode(1)
	}
	return nil
}

// placeSecret writes the file of a secret, if that is asked for, and returns what the user must know.
func (cmd *Import) placeSecret(secret importer.Secret) (string, error) {
	of := "the secret of the hook " + secret.Hook
	switch {
	case len(secret.Text) < leastSecret:
		return fmt.Sprintf("create %s with mode 0600: %s has %d bytes, and %d are needed, so make a new one and give "+
			"it to the sender", secret.File, of, len(secret.Text), leastSecret), nil
	case cmd.Secrets == "":
		return fmt.Sprintf("create %s with mode 0600: %s", secret.File, of), nil
	}
	if err := os.MkdirAll(cmd.Secrets, 0o700); err != nil {
		return "", err
	}
	err := pathsafe.CreateFile(secret.File, strings.NewReader(secret.Text))
	if errors.Is(err, fs.ErrExist) {
		if old, readErr := os.ReadFile(secret.File); readErr == nil && bytes.Equal(old, []byte(secret.Text)) {
			err = nil
		}
	}
	if err != nil {
		return "", fmt.Errorf("writing %s: %w", of, err)
	}
	return fmt.Sprintf("wrote %s: %s", secret.File, of), nil
}
