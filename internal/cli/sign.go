package cli

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"time"

	"sallyport/internal/client"
	"sallyport/internal/httpsurl"
)

// Sign prints the headers that sign a body.
type Sign struct {
	credential
	payload
	Method      string `help:"signature: method of the request. Default: POST."`
	URL         string `help:"signature: URL of the request, https://host/path."`
	ContentType string `help:"signature: Content-Type of the body. Default: application/json."`
}

// Run prints the headers.
func (cmd *Sign) Run(s *Streams) error {
	sign, err := cmd.makeSigner(s.LookupEnv)
	if err != nil {
		return err
	}
	if sign == nil {
		return fmt.Errorf("--scheme is missing: %w", client.ErrUsage)
	}
	signature := []string{"signature"}
	err = checkOptions(cmd.Scheme, []option{
		{"method", cmd.Method != "", signature},
		{"url", cmd.URL != "", signature},
		{"content-type", cmd.ContentType != "", signature},
	})
	if err != nil {
		return err
	}
	body, err := cmd.readBody(s.In)
	if err != nil {
		return err
	}
	if cmd.ID == "" {
		cmd.ID = rand.Text()
	}
	if _, err := httpsurl.Parse(cmd.URL); err != nil && cmd.Scheme == "signature" {
		return fmt.Errorf("--url %q %w: %w", cmd.URL, err, client.ErrUsage)
	}
	req, err := http.NewRequestWithContext(context.Background(), cmp.Or(cmd.Method, http.MethodPost), cmd.URL,
		http.NoBody)
	if err != nil {
		return fmt.Errorf("--method %q: %w: %w", cmd.Method, err, client.ErrUsage)
	}
	req.Header.Set("Content-Type", cmp.Or(cmd.ContentType, "application/json"))
	h, err := sign(req, cmd.ID, body, time.Now())
	if err != nil {
		return err
	}
	_, err = io.WriteString(s.Out, client.Lines(h))
	return err
}
