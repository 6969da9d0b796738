package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"sallyport/internal/client"
	"sallyport/internal/terminal"
	"sallyport/runner"
	"sallyport/runner/process/output"
	"sallyport/runner/store"
)

// Runs lists, shows, follows, cancels and repeats runs, either of a server or of the state folder on this machine.
type Runs struct {
	List   runsList   `cmd:"" help:"List runs, newest first."`
	Show   runsShow   `cmd:"" help:"Show one run."`
	Output runsOutput `cmd:"" help:"Print what the command of a run wrote."`
	Cancel runsCancel `cmd:"" help:"Cancel a queued or running run."`
	Rerun  runsRerun  `cmd:"" help:"Start the command of a run again."`
}

// target is the source of runs: a server, with a credential, or the state folder on this machine, which needs no
// server.
type target struct {
	Server   string `placeholder:"URL" help:"Server: https://host:port." xor:"where" required:""`
	StateDir string `placeholder:"DIR" help:"State folder, instead of a server." xor:"where" required:""`
	credential
	transport
}

// refuseCredential refuses a credential with a state folder, where it would have no effect.
func (r *target) refuseCredential() error {
	if flag := cmp.Or(r.credential.firstFlag(), r.transport.firstFlag()); r.StateDir != "" && flag != "" {
		return fmt.Errorf("--%s needs --server: %w", flag, client.ErrUsage)
	}
	return nil
}

// askServerOrFolder calls online or offline.
func (r *target) askServerOrFolder(
	s *Streams, online func(context.Context, *client.Client) error, offline func(context.Context, *store.SQLite) error,
) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := r.refuseCredential(); err != nil {
		return err
	}
	if r.StateDir != "" {
		st, err := store.OpenRead(ctx, r.StateDir)
		if err != nil {
			return err
		}
		return errors.Join(offline(ctx, st), st.Close())
	}
	c, err := r.makeClient(s, &r.credential, client.Options{Progress: terminal.Writer(s.Err)})
	if err != nil {
		return err
	}
	return online(ctx, c)
}

type runsList struct {
	target
	Hook   []string   `help:"Only runs of these hooks."`
	Caller []string   `help:"Only runs of these callers."`
	State  []runState `placeholder:"STATE" help:"Only runs in these states: queued, running, succeeded, failed, timed_out, cancelled, interrupted."`
	Since  time.Time  `format:"2006-01-02T15:04:05Z07:00" help:"Only runs since this time: 2026-11-30T12:00:00Z."`
	Until  time.Time  `format:"2006-01-02T15:04:05Z07:00" help:"Only runs created before this time."`
	Before string     `placeholder:"ID" help:"Show the page after this run."`
	Limit  int        `default:"50" help:"Maximum number of runs, up to 1000."`
	outputFormat
}

// Run prints a page of runs, and how to get the next one.
func (cmd *runsList) Run(s *Streams) error {
	p := client.Page{Runs: []runner.Run{}}
	err := cmd.askServerOrFolder(s, func(ctx context.Context, c *client.Client) (err error) {
		p, err = c.Runs(ctx, cmd.Server, cmd.buildQuery())
		return err
	}, func(ctx context.Context, st *store.SQLite) (err error) {
		runs, next, err := st.List(ctx, runner.Filter{
			Hooks: cmd.Hook, Callers: cmd.Caller, States: cmd.selectedStates(), Since: cmd.Since, Until: cmd.Until,
			Before: cmd.Before, Limit: cmd.Limit,
		})
		p.Runs, p.Next = append(p.Runs, runs...), next
		return err
	})
	if err != nil {
		return err
	}
	if cmd.JSON {
		return printJSON(s.Out, p)
	}
	w := tabwriter.NewWriter(s.Out, 0, 8, 2, ' ', 0)
	printRuns(w, p.Runs)
	if p.Next != "" {
		defer func() { _, _ = fmt.Fprintln(s.Err, "more runs: add --before", p.Next) }()
	}
	return w.Flush()
}

// printRuns prints a table. It has a column for titles if a run has one.
func printRuns(w io.Writer, runs []runner.Run) {
	titled := slices.ContainsFunc(runs, func(r runner.Run) bool { return r.Title != "" })
	row := func(title string, cells ...string) {
		if titled {
			cells = append(cells, terminal.Line(title))
		}
		_, _ = fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	row("TITLE", "RUN", "HOOK", "CALLER", "STATE", "CREATED", "TOOK", "EXIT")
	for _, r := range runs {
		row(r.Title, r.ID, r.Hook, r.Caller, string(r.State), formatTime(r.Created), formatDuration(r), formatExit(r))
	}
}

// runState is a state that runs are listed by.
type runState runner.State

// UnmarshalText reads the name of a state.
func (s *runState) UnmarshalText(text []byte) error {
	known := append([]runner.State{runner.Queued, runner.Running}, runner.Ends()...)
	if !slices.Contains(known, runner.State(text)) {
		return fmt.Errorf("%q is not a state of runs; to name the state folder, write --state-dir %s", text, text)
	}
	*s = runState(text)
	return nil
}

func (cmd *runsList) selectedStates() (states []runner.State) {
	for _, s := range cmd.State {
		states = append(states, runner.State(s))
	}
	return states
}

func (cmd *runsList) buildQuery() url.Values {
	q := url.Values{"hook": cmd.Hook, "caller": cmd.Caller, "limit": {strconv.Itoa(cmd.Limit)}}
	for _, state := range cmd.State {
		q.Add("state", string(state))
	}
	for name, at := range map[string]time.Time{"since": cmd.Since, "until": cmd.Until} {
		if !at.IsZero() {
			q.Set(name, at.Format(time.RFC3339))
		}
	}
	if cmd.Before != "" {
		q.Set("before", cmd.Before)
	}
	return q
}

func formatTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format(time.DateTime)
}

func formatDuration(r runner.Run) string {
	if r.Started.IsZero() || r.Ended.IsZero() {
		return ""
	}
	return r.Ended.Sub(r.Started).Round(time.Millisecond).String()
}

func formatExit(r runner.Run) string {
	if r.ExitCode != nil {
		return strconv.Itoa(*r.ExitCode)
	}
	return r.Signal
}

type runsShow struct {
	ID string `arg:"" help:"Id of the run."`
	target
	outputFormat
}

// Run prints the run.
func (cmd *runsShow) Run(s *Streams) error {
	var r runner.Run
	err := cmd.askServerOrFolder(s, func(ctx context.Context, c *client.Client) (err error) {
		r, err = c.Run(ctx, cmd.Server, cmd.ID)
		return err
	}, func(ctx context.Context, st *store.SQLite) (err error) {
		r, err = st.Get(ctx, cmd.ID)
		return err
	})
	if err != nil {
		return err
	}
	return cmd.printRun(s.Out, r)
}

type runsOutput struct {
	ID     string `arg:"" help:"Id of the run."`
	Follow bool   `short:"f" help:"Follow the output until the run has ended."`
	target
}

// Run copies the output.
func (cmd *runsOutput) Run(s *Streams) error {
	if cmd.Follow && cmd.StateDir != "" {
		return fmt.Errorf("--follow needs --server: %w", client.ErrUsage)
	}
	return cmd.askServerOrFolder(s, func(ctx context.Context, c *client.Client) error {
		if cmd.Follow {
			return c.Follow(ctx, cmd.Server, cmd.ID, s.Out)
		}
		return c.Output(ctx, cmd.Server, cmd.ID, s.Out)
	}, func(ctx context.Context, st *store.SQLite) error {
		r, err := st.Get(ctx, cmd.ID)
		if err != nil {
			return err
		}
		err = output.Copy(s.Out, filepath.Join(cmd.StateDir, "runs"), cmd.ID)
		if errors.Is(err, runner.ErrUnknown) {
			return fmt.Errorf("run %s has no output: it is %s, and its command was not started", r.ID, r.State)
		}
		return err
	})
}

type runsCancel struct {
	ID string `arg:"" help:"Id of the run."`
	target
	outputFormat
}

// Run cancels.
func (cmd *runsCancel) Run(s *Streams) error {
	return cmd.changeRun(s, func(ctx context.Context, c *client.Client, server string) error {
		r, err := c.Cancel(ctx, server, cmd.ID)
		if err != nil {
			return err
		}
		return cmd.printRun(s.Out, r)
	})
}

type runsRerun struct {
	ID string `arg:"" help:"Id of the run."`
	target
	outputFormat
}

// Run starts the command again.
func (cmd *runsRerun) Run(s *Streams) error {
	return cmd.changeRun(s, func(ctx context.Context, c *client.Client, server string) error {
		r, err := c.Rerun(ctx, server, cmd.ID)
		if err != nil {
			return err
		}
		return cmd.printRun(s.Out, r)
	})
}
