package client

import (
	"context"
	"net"
	"net/http"
	"time"
)

// SetPause replaces the waits of a client, so that a test sees how long they are.
func (c *Client) SetPause(f func(context.Context, time.Duration) error) { c.pause = f }

// SetDial replaces the network of a client.
func (c *Client) SetDial(f func(context.Context, string, string) (net.Conn, error)) {
	c.http.Transport.(*http.Transport).DialContext = f
}

// CloseIdle closes the idle connections.
func (c *Client) CloseIdle() { c.http.CloseIdleConnections() }
