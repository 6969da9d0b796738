package output

import (
	"errors"
	"fmt"
	"io"
)

// Copy writes what is kept of the output of a run in dir. Where the middle is missing, it writes a line that says so.
func Copy(to io.Writer, dir, run string) error {
	o, err := Open(dir, run)
	if err != nil {
		return err
	}
	defer func() { _ = o.Close() }() // only read
	buf := make([]byte, 64<<10)
	for off := int64(0); ; {
		at, n, err := o.Next(buf, off)
		if at > off {
			if _, err := fmt.Fprintf(to, "\n[%d bytes not kept]\n", at-off); err != nil {
				return err
			}
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return err
			}
		}
		off = at + int64(n)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}
