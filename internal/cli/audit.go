package cli

import (
	"fmt"
	"io"
	"os"

	"sallyport/internal/audit"
	"sallyport/internal/client"
)

// Audit verifies the audit log.
type Audit struct {
	Verify auditVerify `cmd:"" help:"Find the first line of an audit log that was changed, moved or removed."`
	Key    auditKey    `cmd:"" help:"Print the keys that verify an audit log, the newest last."`
}

type auditVerify struct {
	Files      []string `arg:"" optional:"" help:"Copied files of audit, or of audit/refusals, in order."`
	StateDir   string   `placeholder:"DIR" help:"State folder instead of files; the log must be complete."`
	Key        []string `placeholder:"KEY" help:"Trust only this key, as \"audit key\" printed it."`
	Checkpoint []string `placeholder:"FILE" help:"Copied file checkpoint; the log must reach at least as far."`
}

// Run prints what was verified, or the first fault.
func (cmd *auditVerify) Run(s *Streams) error {
	keys := cmd.Key
	switch {
	case (cmd.StateDir == "") == (len(cmd.Files) == 0):
		return fmt.Errorf("either --state-dir or files are needed: %w", client.ErrUsage)
	case len(keys) == 0 && cmd.StateDir == "":
		return fmt.Errorf("files need --key: %w", client.ErrUsage)
	case len(keys) == 0:
		var err error
		if keys, err = audit.Keys(cmd.StateDir); err != nil {
			return err
		}
	}
	known, err := audit.Verifiers(keys)
	if err != nil {
		return err
	}
	v := audit.Verifier{Known: known, Checkpoints: map[string]string{}}
	for _, name := range cmd.Checkpoint {
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		v.Checkpoints[name] = string(text)
	}
	var report audit.Report
	if cmd.StateDir != "" {
		report, err = v.State(cmd.StateDir)
	} else {
		report, err = v.Files(cmd.Files)
	}
	if err != nil {
		return err
	}
	if err := printReport(s.Out, "", report); err != nil || report.Refusals == nil {
		return err
	}
	return printReport(s.Out, "Refusals: ", *report.Refusals)
}

func printReport(w io.Writer, what string, r audit.Report) error {
	_, err := fmt.Fprintf(w,
		"%s%d lines in %d files, seq %d to %d, follow one another. Signatures cover all up to seq %d.\n",
		what, r.Lines, r.Files, r.First, r.Last, r.Vouched)
	return err
}

type auditKey struct {
	StateDir string `required:"" placeholder:"DIR" help:"State folder."`
}

// Run prints the keys.
func (cmd *auditKey) Run(s *Streams) error {
	keys, err := audit.Keys(cmd.StateDir)
	for _, key := range keys {
		_, _ = fmt.Fprintln(s.Out, key)
	}
	return err
}
