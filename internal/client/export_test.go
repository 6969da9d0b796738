package client

import (
	"context"
	"net"
	"net/http"
	"time"
)

// SetPause lets a test see how long a client would wait, without waiting.
func (c *Client) SetPause(f func(context.Context, time.Duration) error) { c.pause = f }

// SetDial lets a test be the network.
func (c *Client) SetDial(f func(context.Context, string, string) (net.Conn, error)) {
	c.http.Transport.(*http.Transport).DialContext = f
}

// CloseIdle closes the connections that nothing is asked on.
func (c *Client) CloseIdle() { c.http.CloseIdleConnections() }
