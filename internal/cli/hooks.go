package cli

import (
	"context"
	"fmt"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"sallyport/internal/client"
	"sallyport/runner"
)

// Hooks lists, pauses and resumes the hooks of the server that serves a state folder on this machine.
type Hooks struct {
	List   hooksList   `cmd:"" help:"List the hooks, their pauses and their runs."`
	Pause  hooksPause  `cmd:"" help:"Start no more runs of a hook until it is resumed."`
	Resume hooksResume `cmd:"" help:"End the pause of a hook, and start its queued runs."`
}

// localServer is the server that serves a state folder. It may be asked by root and by the user of the server.
type localServer struct {
	StateDir string `placeholder:"DIR" help:"State folder of the server." required:""`
	outputFormat
}

func (l *localServer) askServer(f func(ctx context.Context, c *client.Local, server string) error) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return askLocally(ctx, l.StateDir, f)
}

func (l *localServer) printHooks(s *Streams, hooks []runner.HookState) error {
	w := tabwriter.NewWriter(s.Out, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "HOOK\tPATH\tCALLERS\tBUSY\tRUNNING\tQUEUED\tPAUSED")
	for _, h := range hooks {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%s\n", h.Name, h.Path, strings.Join(h.Callers, ","), h.Busy,
			len(h.Running), len(h.Queued), formatPause(h.Paused))
	}
	return w.Flush()
}

// formatPause returns since when, until when, by whom and why a hook is paused.
func formatPause(p *runner.Pause) string {
	if p == nil {
		return "no"
	}
	until := "until it is resumed"
	if !p.Until.IsZero() {
		until = "until " + formatTime(p.Until)
	}
	return fmt.Sprintf("since %s, %s, by %s: %s", formatTime(p.Since), until, p.By, p.Reason)
}

func (l *localServer) printHook(s *Streams, h runner.HookState) error {
	if l.JSON {
		return printJSON(s.Out, h)
	}
	return l.printHooks(s, []runner.HookState{h})
}

type hooksList struct{ localServer }

// Run prints the hooks.
func (cmd *hooksList) Run(s *Streams) error {
	return cmd.askServer(func(ctx context.Context, c *client.Local, server string) error {
		hooks, err := c.Hooks(ctx, server)
		switch {
		case err != nil:
			return err
		case cmd.JSON:
			return printJSON(s.Out, hooks)
		}
		return cmd.printHooks(s, hooks)
	})
}

type hooksPause struct {
	Name   string        `arg:"" help:"Name of the hook."`
	Reason string        `required:"" placeholder:"TEXT" help:"Why, for the next operator, the log and the audit log; up to 200 characters."`
	For    time.Duration `placeholder:"DURATION" help:"Resume after this time; without it, the pause has no end."`
	localServer
}

// Run pauses the hook.
func (cmd *hooksPause) Run(s *Streams) error {
	if cmd.For < 0 {
		return fmt.Errorf("--for is below zero: %w", client.ErrUsage)
	}
	return cmd.askServer(func(ctx context.Context, c *client.Local, server string) error {
		h, err := c.PauseHook(ctx, server, cmd.Name, cmd.Reason, cmd.For)
		if err != nil {
			return err
		}
		return cmd.printHook(s, h)
	})
}

type hooksResume struct {
	Name string `arg:"" help:"Name of the hook."`
	localServer
}

// Run ends the pause.
func (cmd *hooksResume) Run(s *Streams) error {
	return cmd.askServer(func(ctx context.Context, c *client.Local, server string) error {
		h, err := c.ResumeHook(ctx, server, cmd.Name)
		if err != nil {
			return err
		}
		return cmd.printHook(s, h)
	})
}
