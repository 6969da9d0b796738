package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"sallyport/internal/terminal"
	"sallyport/runner"
)

// HookResult is what one of several hooks of a path did with a delivery. Its JSON is that of the API.
type HookResult struct {
	Hook   string          `json:"hook"`
	Status int             `json:"status"`
	Answer json.RawMessage `json:"answer"` // with wait, the run as it ended

	Run runner.Run `json:"-"`
	Err error      `json:"-"` // why there is no run, or why its end is not known
}

// Ignored reports whether the delivery is not meant for the hook.
func (h *HookResult) Ignored() bool { return errors.Is(h.Err, ErrIgnored) }

// ExitCode returns the exit code for the hook alone: that of its error, or with wait of its run.
func (h *HookResult) ExitCode(wait bool) int {
	if h.Err != nil || !wait {
		return ExitCode(h.Err)
	}
	return RunExitCode(h.Run)
}

// parseHooks reads what several hooks answered. It returns nothing if the answer is that of one hook.
func parseHooks(body []byte) []HookResult {
	var list struct {
		Hooks []HookResult `json:"hooks"`
	}
	if len(body) > maxAnswer || json.Unmarshal(body, &list) != nil {
		return nil
	}
	for i := range list.Hooks {
		h := &list.Hooks[i]
		if h.Status < http.StatusBadRequest {
			h.Run, h.Err = parseRun(h.Answer)
			continue
		}
		refused := &Refused{Status: h.Status}
		refused.readProblem(h.Answer)
		h.Err = refused
	}
	return list.Hooks
}

// followHooks follows the runs of several hooks, one after the other. The output of each is under the name of its hook,
// as tail(1) prints several files. An error of one run is that of its hook, and the next is followed.
func (c *Client) followHooks(ctx context.Context, u *url.URL, hooks []HookResult, d Delivery) error {
	between := ""
	for i := range hooks {
		h := &hooks[i]
		if h.Err != nil {
			continue
		}
		if c.opt.Output != nil {
			if _, err := fmt.Fprintf(c.opt.Output, "%s==> %s <==\n", between, terminal.Line(h.Hook)); err != nil {
				return err
			}
		}
		between = "\n"
		h.Run, h.Err = c.followRun(ctx, u, runPath(h.Run.ID), h.Run, d)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var err error
		if h.Answer, err = json.Marshal(h.Run); err != nil {
			return err
		}
	}
	return nil
}
