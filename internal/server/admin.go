package server

import (
	"context"
	"errors"
	"net"
	"net/http"
)

// ServeAdmin answers local administrators on a listener until ctx is done, and then lets requests in
// progress end for a few seconds. identify adds the user to the context of a connection.
func ServeAdmin(
	ctx context.Context, listener net.Listener, handler http.Handler,
	identify func(context.Context, net.Conn) context.Context,
) error {
	srv := &http.Server{
		Handler: handler, ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: headerBytes, ConnContext: identify,
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(listener) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastAnswers)
	defer cancel()
	err := srv.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = srv.Close()
	}
	return err
}
