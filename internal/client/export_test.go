package client

import (
	"context"
	"time"
)

// SetPause lets a test see how long a client would wait, without waiting.
func (c *Client) SetPause(f func(context.Context, time.Duration) error) { c.pause = f }
