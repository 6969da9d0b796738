// Package server accepts connections and drives the server from its first request to its end: [New] takes a
// listener, [Server.Serve] answers until it is stopped, and then drains, or hands over to a [Successor].
//
// Connections carry TLS and nothing else. Every timeout and size is bounded, and so is what one connection, address
// and site may use before it has carried a valid credential. When all places are taken, connections of strangers are
// closed before those of callers. Neither a drain nor a handover loses a run: a drain waits for the runs or stops them,
// and after a handover they continue under the successor. A successor that fails leaves the predecessor serving.
package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"sallyport/internal/config"
	"sallyport/internal/netid"
	"sallyport/runner"
)

// The deadlines of a connection. A handler sets its own if it waits for a run or reads a body.
const (
	headerTimeout = 5 * time.Second  // from accept to the end of the header, including the handshake
	readTimeout   = 10 * time.Second // until the end of a body that no handler reads
	writeTimeout  = 30 * time.Second
	idleTimeout   = 60 * time.Second
	headerBytes   = 16 << 10

	maxStreams    = 16        // a connection serves one sender
	receiveBuffer = 256 << 10 // of an HTTP/2 connection, for bodies that have not been read
	lastAnswers   = 5 * time.Second
	firstRequest  = time.Second // of a connection that was accepted just before the server stops
)

// Handler answers the requests, and decides about connections that have not carried a valid credential yet.
type Handler interface {
	http.Handler
	AllowConnection(from netip.Addr) bool // false if the address connects too often
	IsProvedHost(from netip.Addr) bool    // whether the address had a valid credential lately
	CountRejectedConnection()             // a connection was closed because there were too many
	ReportFlood(from netip.Addr)          // a connection was closed because too many bytes arrived on it
	ReportUnreadable(from netip.AddrPort) // a request arrived that net/http did not pass to a handler
	ReportRefusedCertificate(from netip.AddrPort, shown *x509.Certificate, why error)
}

// Server is one TLS listener and the HTTP server on it.
type Server struct {
	http     *http.Server
	handler  Handler
	raw      net.Listener // below the limits and TLS
	limited  *listener    // below TLS
	listener net.Listener
	next     func(listener, pipe *os.File) (*NextProcess, error)
	runner   *runner.Runner
	conf     *config.Watcher
	log      *slog.Logger
}

// New returns a server on a listener. It accepts connections only in Serve. next starts the successor, with the two
// files as its descriptors 3 and 4 and HandoverEnv set.
func New(
	l net.Listener, conf *config.Watcher, handler Handler, run *runner.Runner,
	next func(listener, pipe *os.File) (*NextProcess, error), log *slog.Logger,
) *Server {
	s := &Server{
		raw: l, next: next, handler: handler,
		http: &http.Server{
			Handler:           handler,
			ReadHeaderTimeout: headerTimeout,
			ReadTimeout:       readTimeout,
			WriteTimeout:      writeTimeout,
			IdleTimeout:       idleTimeout,
			MaxHeaderBytes:    headerBytes,
			HTTP2: &http.HTTP2Config{
				MaxConcurrentStreams: maxStreams,
				SendPingTimeout:      30 * time.Second,
				PingTimeout:          15 * time.Second,
				WriteByteTimeout:     writeTimeout,

				MaxReceiveBufferPerConnection: receiveBuffer,
				MaxReceiveBufferPerStream:     receiveBuffer,
			},
			// Otherwise net/http would answer OPTIONS * itself, without limits and logs.
			DisableGeneralOptionsHandler: true,
			// Scanners cause a line per handshake, so these lines are only in the debug log.
			ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		},
		runner: run, conf: conf, log: log,
	}
	s.limited = limitConnections(l, conf, handler)
	s.listener = tls.NewListener(s.limited, &tls.Config{
		MinVersion:         tls.VersionTLS13, // not used: each handshake uses the configuration in force
		GetConfigForClient: s.tlsInForce,
	})
	trackRequests(s.http, handler)
	return s
}

// tlsInForce returns the TLS configuration in force. With it, the server reports client certificates that it refuses:
// net/http only logs them as handshake errors, in the debug log. Sessions can be resumed in spite of the copy for each
// handshake, because the listener has the keys of the tickets.
func (s *Server) tlsInForce(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	c := s.conf.Get().TLS
	judge := c.VerifyConnection
	if judge == nil {
		return c, nil
	}
	c = c.Clone()
	c.VerifyConnection = func(state tls.ConnectionState) error {
		err := judge(state)
		if err != nil && len(state.PeerCertificates) > 0 {
			s.handler.ReportRefusedCertificate(netid.AddrPort(hello.Conn.RemoteAddr()), state.PeerCertificates[0], err)
		}
		return err
	}
	return c, nil
}

// Addr returns the address of the listener.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Signals end a server. Stop, Kill and Displaced are closed once. Each event on HandOver starts an attempt.
type Signals struct {
	Stop, Kill, HandOver <-chan struct{}
	Displaced            <-chan struct{} // another server has connected to the supervisor
}

// ErrDisplaced ends a server that can no longer start runs. Its exit code reports that to the
// service manager.
var ErrDisplaced = errors.New("another server took over the supervisor of this state folder")

// Serve answers until it is stopped. Then it drains: it refuses deliveries with 503, and runs in progress may end
// within the drain time of the configuration. Commands that still run after that are stopped, or at once after Kill. No
// command is left when Serve returns, unless a successor is ready: then all runs continue, and the listener stays open.
func (s *Server) Serve(sig Signals) (next *Successor, err error) {
	failed := make(chan error, 1)
	go func() { failed <- s.http.Serve(s.listener) }()
	s.log.Info("serving", "address", "https://"+s.Addr().String())
	var serveErr error
	for waiting := true; waiting; {
		waiting = false
		select {
		case serveErr = <-failed:
			s.log.Error("serving ended", "error", serveErr)
		case <-sig.Stop:
		case <-sig.Displaced:
			s.log.Error("displaced: another server took over the supervisor")
			s.runner.Leave() // the runs belong to the other server now
			s.closeConnections()
			return nil, ErrDisplaced
		case <-sig.HandOver:
			next, err := s.handOver()
			if err != nil {
				s.log.Error("not handed over", "error", err)
				waiting = true
				continue
			}
			// Requests that have arrived are still answered here. Later ones wait for the successor.
			_ = s.finishAnswers(firstRequest) // those that take longer continue below
			s.runner.Leave()
			s.closeConnections()
			return next, nil
		}
	}
	return nil, s.drainRuns(sig.Kill, serveErr)
}

func (s *Server) drainRuns(kill <-chan struct{}, serveErr error) error {
	patience := s.conf.Get().Drain
	s.log.Info("draining", "runs_may_take", patience.String())
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	drained := make(chan struct{})
	go func() { s.runner.Drain(ctx); close(drained) }()
	select {
	case <-drained:
	case <-kill:
		s.log.Warn("killing: a second signal came")
		s.runner.Kill()
		cancel()
		<-drained
	}
	s.closeConnections()
	if serveErr != nil && !errors.Is(serveErr, http.ErrServerClosed) {
		return fmt.Errorf("serving %s: %w", s.Addr(), serveErr)
	}
	s.log.Info("drained")
	return nil
}

// finishAnswers stops accepting connections, and lets answers in progress end.
func (s *Server) finishAnswers(patience time.Duration) error {
	_ = s.listener.Close() // it may be closed already
	s.limited.awaitFirstRequests(firstRequest)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return s.http.Shutdown(ctx)
}

// closeConnections waits for answers as finishAnswers does, including answers about runs that have just ended. Then it
// closes the other connections.
func (s *Server) closeConnections() {
	if s.finishAnswers(lastAnswers) != nil {
		_ = s.http.Close()
	}
}
