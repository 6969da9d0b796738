//go:build !linux

package handlers

import "time"

// ticks returns what waits for the next tick, and what ends them.
func ticks(every time.Duration) (next, stop func()) { return ticker(every) }
