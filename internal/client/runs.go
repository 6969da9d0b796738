package client

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"

	"sallyport/runner"
)

// Page is a part of the list of runs, newest first.
type Page struct {
	Runs []runner.Run `json:"runs"`
	Next string       `json:"next"` // path and query of the next page
}

// Runs asks a server for the runs that query picks: hook, caller, state,
// since, until, before and limit.
func (c *Client) Runs(ctx context.Context, server string, query url.Values) (p Page, err error) {
	err = c.ask(ctx, http.MethodGet, server, "/runs?"+query.Encode(), &p)
	return p, err
}

// Run asks for one run.
func (c *Client) Run(ctx context.Context, server, id string) (r runner.Run, err error) {
	err = c.ask(ctx, http.MethodGet, server, "/runs/"+url.PathEscape(id), &r)
	return r, err
}

// Cancel ends a run and returns it as it stands then.
func (c *Client) Cancel(ctx context.Context, server, id string) (r runner.Run, err error) {
	err = c.ask(ctx, http.MethodDelete, server, "/runs/"+url.PathEscape(id), &r)
	return r, err
}

// Rerun starts the command of a run again and returns the new run.
func (c *Client) Rerun(ctx context.Context, server, id string) (r runner.Run, err error) {
	err = c.ask(ctx, http.MethodPost, server, "/runs/"+url.PathEscape(id)+"/rerun", &r)
	return r, err
}

// Output copies what the command of a run wrote, and with follow what it still
// writes until the run has ended.
func (c *Client) Output(ctx context.Context, server, id string, follow bool, to io.Writer) error {
	path := "/runs/" + url.PathEscape(id) + "/output"
	if follow {
		path += "?follow"
	}
	resp, err := c.request(ctx, http.MethodGet, server, path)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	if _, err := io.Copy(to, resp.Body); err != nil {
		return unreachable(ctx, err)
	}
	return nil
}

// ask sends a request and reads its answer as JSON.
func (c *Client) ask(ctx context.Context, method, server, path string, into any) error {
	resp, err := c.request(ctx, method, server, path)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxList)).Decode(into); err != nil {
		return fmt.Errorf("%w: %w", ErrAnswer, err)
	}
	return nil
}

const maxList = 64 << 20 // a thousand runs with long parameters

// request sends a request without a body, signed as of now, and returns an
// answer that is no refusal.
func (c *Client) request(ctx context.Context, method, server, path string) (*http.Response, error) {
	u, err := url.Parse(strings.TrimSuffix(server, "/") + path)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, fmt.Errorf("%q is not of the form https://host: %w", server, ErrUsage)
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), http.NoBody)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "sallyport")
	// Some schemes are verified with the content type of deliveries only.
	req.Header.Set("Content-Type", "application/json")
	if c.opt.Sign != nil {
		signed, err := c.opt.Sign(req, rand.Text(), nil, c.opt.Now())
		if err != nil {
			return nil, err
		}
		maps.Copy(req.Header, signed)
	}
	// Following an output has no end of its own; ctx is what ends it.
	patient := *c.http
	patient.Timeout = 0
	resp, err := patient.Do(req)
	if err != nil {
		return nil, unreachable(ctx, err)
	}
	if resp.StatusCode < http.StatusMultipleChoices {
		return resp, nil
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, unreachable(ctx, err)
	}
	return nil, refused(resp, body, c.opt.Now())
}
