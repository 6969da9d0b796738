package client

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"sallyport/runner"
)

// Page is a part of the list of runs, newest first.
type Page struct {
	Runs []runner.Run `json:"runs"`
	Next string       `json:"next,omitempty"` // the run before which the next page begins; empty on the last page
}

// Runs requests the runs that query selects: hook, caller, state, since, until, before and limit.
func (c *Client) Runs(ctx context.Context, server string, query url.Values) (p Page, err error) {
	if err := c.getJSON(ctx, http.MethodGet, server, "/runs?"+query.Encode(), &p); err != nil || p.Next == "" {
		return p, err
	}
	next, err := url.Parse(p.Next) // path and query of the next page
	if err != nil || !next.Query().Has("before") {
		return p, fmt.Errorf("%w: it leads to no next page", ErrAnswer)
	}
	p.Next = next.Query().Get("before")
	return p, nil
}

// Run requests one run.
func (c *Client) Run(ctx context.Context, server, id string) (r runner.Run, err error) {
	err = c.getJSON(ctx, http.MethodGet, server, runPath(id), &r)
	return r, err
}

// Cancel ends a run and returns its state after that.
func (c *Client) Cancel(ctx context.Context, server, id string) (r runner.Run, err error) {
	err = c.getJSON(ctx, http.MethodDelete, server, runPath(id), &r)
	return r, err
}

// Rerun starts the command of a run again and returns the new run.
func (c *Client) Rerun(ctx context.Context, server, id string) (r runner.Run, err error) {
	err = c.getJSON(ctx, http.MethodPost, server, runPath(id)+"/rerun", &r)
	return r, err
}

// Hooks requests the hooks of the server, with their pauses.
func (c *Local) Hooks(ctx context.Context, server string) ([]runner.HookState, error) {
	var list struct {
		Hooks []runner.HookState `json:"hooks"`
	}
	err := c.getJSON(ctx, http.MethodGet, server, "/hooks", &list)
	return list.Hooks, err
}

// PauseHook pauses a hook for a time, or, with 0, until it is resumed, and returns its state after that.
func (c *Local) PauseHook(ctx context.Context, server, name, reason string, length time.Duration) (
	h runner.HookState, err error,
) {
	query := url.Values{"reason": {reason}}
	if length > 0 {
		query.Set("for", length.String())
	}
	err = c.getJSON(ctx, http.MethodPost, server, "/hooks/"+url.PathEscape(name)+"/pause?"+query.Encode(), &h)
	return h, err
}

// ResumeHook ends the pause of a hook and returns its state after that.
func (c *Local) ResumeHook(ctx context.Context, server, name string) (h runner.HookState, err error) {
	err = c.getJSON(ctx, http.MethodPost, server, "/hooks/"+url.PathEscape(name)+"/resume", &h)
	return h, err
}

// Output copies what the command of a run wrote.
func (c *Client) Output(ctx context.Context, server, id string, to io.Writer) error {
	resp, err := c.openAnswer(ctx, c.withoutTimeout(), http.MethodGet, server, outputPath(id), nil)
	if err != nil {
		return err
	}
	_, err = copyBody(ctx, to, resp)
	return err
}

// Follow copies the output of a run until the run has ended. If an answer breaks off, or the server restarts, Follow
// continues at the same offset.
func (c *Client) Follow(ctx context.Context, server, id string, to io.Writer) error {
	f := follower{Client: c, to: to, open: func(off int64) (*http.Response, error) {
		return c.openAnswer(ctx, c.withoutTimeout(), http.MethodGet, server, outputPath(id)+"?follow",
			http.Header{"Range": {fmt.Sprintf("bytes=%d-", off)}})
	}}
	return f.copyOutput(ctx)
}

// withoutTimeout returns a client without a limit for the whole request: the length of an output is not known, and it
// grows until its run ends.
func (c *Client) withoutTimeout() *http.Client {
	patient := *c.http
	patient.Timeout = 0
	return &patient
}

func runPath(id string) string { return "/runs/" + url.PathEscape(id) }

func outputPath(id string) string { return runPath(id) + "/output" }

// follower copies an output that grows, by as many answers as it takes.
type follower struct {
	*Client

	to   io.Writer
	open func(off int64) (*http.Response, error) // requests the output from an offset on
	off  int64                                   // after the last copied byte
}

// copyOutput copies the answers of open, until one of them ends as it should.
func (f *follower) copyOutput(ctx context.Context) error {
	var out outage
	for {
		resp, err := f.open(f.off)
		if err == nil {
			answered, from := f.opt.Now(), f.off
			if err = f.copyAnswer(ctx, resp); err == nil {
				return nil
			}
			if !errors.Is(err, errBrokenOff) {
				return err
			}
			if f.opt.Now().Sub(answered) > busyPause { // the connection was good until then
				out = outage{}
			}
			if f.off > from {
				out = outage{}
				continue
			}
		}
		if err := f.waitOutOutage(ctx, err, &out); err != nil {
			return err
		}
	}
}

// copyAnswer copies an answer that continues at the offset. If the server has removed the output at that offset, the
// answer begins later.
func (f *follower) copyAnswer(ctx context.Context, resp *http.Response) error {
	var at int64
	if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-", &at); err != nil || at < f.off ||
		resp.StatusCode != http.StatusPartialContent {
		return errors.Join(fmt.Errorf("%w: it does not continue at the requested offset", ErrAnswer), resp.Body.Close())
	}
	if at > f.off {
		if _, err := fmt.Fprintf(f.to, "\n[%d bytes not kept]\n", at-f.off); err != nil {
			return errors.Join(err, resp.Body.Close())
		}
	}
	n, err := copyBody(ctx, f.to, resp)
	f.off = at + n
	return err
}

// copyBody copies an answer. An error of writing is final. An answer that breaks off is errBrokenOff, and the caller
// can continue after it.
func copyBody(ctx context.Context, to io.Writer, resp *http.Response) (int64, error) {
	defer resp.Body.Close() //nolint:errcheck // only read
	w := &destination{Writer: to}
	n, err := io.Copy(w, resp.Body)
	switch {
	case err == nil, w.err != nil:
		return n, w.err
	case ctx.Err() != nil:
		return n, ctx.Err()
	}
	return n, fmt.Errorf("%w: %w: %v", ErrUnreachable, errBrokenOff, err) //nolint:errorlint // as in errors.go
}

// destination keeps the errors of writing, to distinguish them from the errors of reading.
type destination struct {
	io.Writer
	err error
}

func (d *destination) Write(b []byte) (n int, err error) {
	n, err = d.Writer.Write(b)
	d.err = err
	return n, err
}

// getJSON sends a request and reads its answer as JSON.
func (c *Client) getJSON(ctx context.Context, method, server, path string, into any) error {
	resp, err := c.openAnswer(ctx, c.http, method, server, path, nil)
	if err != nil {
		return err
	}
	body, err := readAnswer(ctx, resp, maxList)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("%w: %w", ErrAnswer, err)
	}
	return nil
}

const maxList = 64 << 20 // a thousand runs with long parameters

// openAnswer sends a request without a body to a server's run API.
func (c *Client) openAnswer(
	ctx context.Context, by *http.Client, method, server, path string, header http.Header,
) (*http.Response, error) {
	u, err := parseAddress(strings.TrimSuffix(server, "/") + path)
	if err != nil {
		return nil, err
	}
	// Some schemes are verified with the content type of deliveries only.
	return c.sendRequest(ctx, by, method, u, Delivery{ID: rand.Text(), ContentType: "application/json", Header: header})
}
