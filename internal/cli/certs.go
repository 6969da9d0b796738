package cli

import (
	"fmt"
	"time"

	"sallyport/certs"
)

// Certs makes certificates.
type Certs struct {
	Dev certsDev `cmd:"" help:"Make a development CA, and certificates for localhost and for a client."`
}

type certsDev struct {
	Dir   string `default:"certs" help:"Folder to write to."`
	Renew bool   `help:"Replace certificates that expire within a week; keep the others."`
}

// Run makes the files.
func (cmd *certsDev) Run(s *Streams) error {
	made, err := certs.Dev(cmd.Dir, time.Now(), cmd.Renew)
	if err != nil {
		return err
	}
	if made {
		_, _ = fmt.Fprintf(s.Out,
			"made ca.pem, server.pem, server.key, client.pem and client.key in %s, for development only\n", cmd.Dir)
	}
	return nil
}
