package runner

import (
	"context"
	"sync"
)

// gate counts the work that Drain waits for, and admits none from outside once it is closed. A unit of work is a call
// of doWork or goWork: it begins and ends there, so none is lost if the work panics.
type gate struct {
	going chan struct{} // closed when the gate is

	mu    sync.Mutex
	units int
	idle  chan struct{} // closed and replaced when units falls to zero
}

func newGate() *gate { return &gate{going: make(chan struct{}), idle: make(chan struct{})} }

// doWork calls f as a unit of work, or returns ErrDraining if the gate is closed.
func (g *gate) doWork(f func() error) error {
	if err := g.beginUnit(); err != nil {
		return err
	}
	defer g.endUnit()
	return f()
}

// goWork calls f as a unit of work in a goroutine. Its caller is a unit itself, or recovers the runs of an earlier
// server, so a closed gate lets it pass.
func (g *gate) goWork(f func()) {
	g.mu.Lock()
	g.units++
	g.mu.Unlock()
	go func() {
		defer g.endUnit()
		f()
	}()
}

func (g *gate) beginUnit() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.isClosed() {
		return ErrDraining
	}
	g.units++
	return nil
}

func (g *gate) endUnit() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.units--; g.units == 0 {
		close(g.idle)
		g.idle = make(chan struct{})
	}
}

// closeGate closes the gate. It may be closed already.
func (g *gate) closeGate() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.isClosed() {
		close(g.going)
	}
}

func (g *gate) isClosed() bool {
	select {
	case <-g.going:
		return true
	default:
		return false
	}
}

// awaitIdle waits until no work is in progress, and reports false if ctx was done first.
func (g *gate) awaitIdle(ctx context.Context) bool {
	for {
		g.mu.Lock()
		units, idle := g.units, g.idle
		g.mu.Unlock()
		if units == 0 {
			return true
		}
		select {
		case <-idle:
		case <-ctx.Done():
			return false
		}
	}
}

func (g *gate) awaitIdleBriefly(ctx context.Context) bool {
	ctx, stop := context.WithTimeout(ctx, answerTime)
	defer stop()
	return g.awaitIdle(ctx)
}
