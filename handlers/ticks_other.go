//go:build !linux

package handlers

import "time"

// newTicks returns what waits for the next tick, and what ends them.
func newTicks(every time.Duration) (next, stop func()) { return newTicker(every) }
