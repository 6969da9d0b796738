//go:build !linux

package handlers

import "time"

// newTicks returns a function that waits for the next tick, and one that stops the ticks.
func newTicks(every time.Duration) (next, stop func()) { return newTicker(every) }
