package cli

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"time"

	"sallyport/internal/client"
)

// Sign prints the headers that sign a body.
type Sign struct {
	proof
	Method      string `default:"POST" help:"signature: of the request."`
	URL         string `help:"signature: of the request, https://host/path."`
	ContentType string `default:"application/json" help:"signature: of the body."`
}

// Run prints the headers.
func (cmd *Sign) Run(s *Streams) error {
	sign, err := cmd.signer()
	if err != nil {
		return err
	}
	if sign == nil {
		return fmt.Errorf("--scheme is missing: %w", client.ErrUsage)
	}
	body, err := cmd.body(s.In)
	if err != nil {
		return err
	}
	if cmd.ID == "" {
		cmd.ID = rand.Text()
	}
	req, err := http.NewRequestWithContext(context.Background(), cmd.Method, cmd.URL, http.NoBody)
	if err != nil || cmd.Scheme == "signature" && (req.URL.Scheme != "https" || req.URL.Host == "") {
		return fmt.Errorf("--url %q is not of the form https://host/path: %w", cmd.URL, client.ErrUsage)
	}
	req.Header.Set("Content-Type", cmd.ContentType)
	h, err := sign(req, cmd.ID, body, time.Now())
	if err != nil {
		return err
	}
	_, err = io.WriteString(s.Out, client.Lines(h))
	return err
}
