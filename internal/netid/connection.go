package netid

import (
	"context"
	"net/http"
)

// Connection is what the handlers of requests report about the connection that
// the requests came on.
type Connection interface {
	// Prove says that a credential was verified.
	Prove()
	// Answer counts an answer, and reports whether it should be the last one.
	Answer(status int) (last bool)
	// Received counts bytes of a body that were read.
	Received(n int)
}

type connectionKey struct{}

// WithConnection returns a context for the requests of a connection.
func WithConnection(ctx context.Context, c Connection) context.Context {
	return context.WithValue(ctx, connectionKey{}, c)
}

// ConnectionOf returns the connection of a request. Without one, nothing is
// counted.
func ConnectionOf(r *http.Request) Connection {
	if c, ok := r.Context().Value(connectionKey{}).(Connection); ok {
		return c
	}
	return uncounted{}
}

type uncounted struct{}

// Prove implements Connection.
func (uncounted) Prove() {}

// Answer implements Connection.
func (uncounted) Answer(int) (last bool) { return false }

// Received implements Connection.
func (uncounted) Received(int) {}
