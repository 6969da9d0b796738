package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"sallyport/internal/diag"
)

const (
	firstSVID  = 10 * time.Second // how long a start waits for a certificate
	watchPause = 5 * time.Second  // time before an ended watch begins again
)

// SPIFFESpec names a SPIFFE Workload API.
type SPIFFESpec struct {
	Socket string `yaml:"socket"` // "unix:///run/spire/agent.sock"
}

// Workloads are the connections to SPIFFE Workload APIs, one for each socket. They deliver certificates and bundles as
// these change, so they outlive the configurations that name them.
type Workloads struct {
	log         *slog.Logger
	wait, pause time.Duration   // firstSVID and watchPause, except in tests
	stop        <-chan struct{} // closed to end waits for a first certificate; nil: never

	mu   sync.Mutex
	open map[string]*workload
}

// NewWorkloads returns an empty set of connections.
func NewWorkloads(log *slog.Logger) *Workloads {
	return &Workloads{log: log, wait: firstSVID, pause: watchPause, open: map[string]*workload{}}
}

// Until makes ctx end all later waits for a first certificate. It must not be called while a configuration is loaded.
func (w *Workloads) Until(ctx context.Context) {
	if w != nil {
		w.stop = ctx.Done()
	}
}

// Retain closes all connections except for one socket, or all if socket is "". It is called with the socket of the
// configuration in force, and the log reports what is issued there from then on.
func (w *Workloads) Retain(socket string) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, one := range w.open {
		if name == socket {
			one.markInUse()
			continue
		}
		one.closeClient()
		delete(w.open, name)
	}
}

// loadWorkload returns the connection for spec, with a certificate and a bundle, or reports what is wrong. It waits up
// to ten seconds for them.
func (w *Workloads) loadWorkload(spec *SPIFFESpec, p *diag.List) *workload {
	p = p.At("socket")
	path, ok := strings.CutPrefix(spec.Socket, "unix://")
	switch {
	case spec.Socket == "":
		p.Errorf("is missing: the socket of the SPIFFE Workload API")
	case !ok || !filepath.IsAbs(path) || workloadapi.ValidateAddress(spec.Socket) != nil:
		p.Errorf("%q is not a Unix socket: write unix:///run/spire/agent.sock "+
			"(over TCP, private keys would be sent unencrypted)", spec.Socket)
	case w == nil:
		p.Errorf("cannot be used by this command")
	case isReplaceable(path):
		p.Errorf("%s is in a folder that other users may write to, so they could replace the socket", path)
	default:
		one, err := w.connectSocket(spec.Socket)
		if err == nil {
			return one
		}
		p.Errorf("%v", err)
	}
	return nil
}

// isReplaceable reports whether other users could replace the socket.
func isReplaceable(path string) bool {
	info, err := os.Stat(filepath.Dir(path))
	return err == nil && info.Mode().Perm()&0o002 != 0
}

func (w *Workloads) connectSocket(socket string) (*workload, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if one := w.open[socket]; one != nil {
		return one, nil
	}
	client, err := workloadapi.New(context.Background(), workloadapi.WithAddr(socket))
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", socket, err)
	}
	ctx, stop := context.WithCancel(context.Background())
	one := &workload{
		socket: socket, log: w.log, client: client, stop: stop, stopping: ctx.Done(),
		first: make(chan struct{}), ended: make(chan struct{}), failure: errors.New("no answer"),
	}
	go one.watchUpdates(ctx, w.pause)
	select {
	case <-one.first:
		w.open[socket] = one
		return one, nil
	case <-time.After(w.wait):
	case <-w.stop:
	}
	one.closeClient()
	return nil, fmt.Errorf("waiting %s for a certificate from %s: %w", w.wait, socket, one.failure)
}

// workload is the connection to one Workload API, with what it issued last.
type workload struct {
	socket string
	log    *slog.Logger
	client *workloadapi.Client

	stop     context.CancelFunc
	stopping <-chan struct{} // closed after stop is called
	ended    chan struct{}   // closed after watchUpdates has returned

	current atomic.Pointer[svidUpdate]
	used    atomic.Bool   // in use by the configuration in force; updates of other connections are not logged
	first   chan struct{} // closed when current is set
	failure error         // the last error; read it only after ended is closed
}

// svidUpdate is one message of the Workload API. It is never changed.
type svidUpdate struct {
	id      string
	pair    *tls.Certificate
	domains map[spiffeid.TrustDomain]*authority
}

// watchUpdates follows the Workload API until it is stopped. The library retries after most errors, but not after all.
func (w *workload) watchUpdates(ctx context.Context, pause time.Duration) {
	defer close(w.ended)
	for ctx.Err() == nil {
		_ = w.client.WatchX509Context(ctx, w) // OnX509ContextWatchError gets the error
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// markInUse marks the connection as used by the configuration in force.
func (w *workload) markInUse() {
	if !w.used.Swap(true) {
		w.logIssued(w.current.Load())
	}
}

func (w *workload) logIssued(now *svidUpdate) {
	w.log.Info("svid issued", "id", now.id, "until", now.pair.Leaf.NotAfter, "trust_domains", now.domainNames())
}

func (w *workload) closeClient() {
	w.stop()
	<-w.ended
	_ = w.client.Close()
}

// OnX509ContextUpdate stores the latest message. If a message omits a bundle, the bundle is not trusted any more
// (SPIFFE Workload API, section 5.2).
func (w *workload) OnX509ContextUpdate(x *workloadapi.X509Context) {
	svid := x.DefaultSVID()
	now := &svidUpdate{
		id:      svid.ID.String(),
		pair:    &tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]},
		domains: map[spiffeid.TrustDomain]*authority{},
	}
	for _, c := range svid.Certificates {
		now.pair.Certificate = append(now.pair.Certificate, c.Raw)
	}
	for _, b := range x.Bundles.Bundles() {
		td := b.TrustDomain()
		now.domains[td] = newAuthority("the bundle of "+td.IDString(), b.X509Authorities())
	}
	before := w.current.Swap(now)
	if w.used.Load() {
		w.logIssued(now)
	}
	if before == nil {
		close(w.first)
	}
}

// OnX509ContextWatchError stores and logs the error. The last issued certificate stays in use until it expires.
func (w *workload) OnX509ContextWatchError(err error) {
	select {
	case <-w.stopping: // the watch is stopped, which is the cause of the error
		return
	default:
	}
	w.failure = err
	if w.used.Load() {
		w.log.Warn("no svid issued", "socket", w.socket, "error", err)
	}
}

func (w *workload) String() string {
	now := w.current.Load()
	return fmt.Sprintf("%s, where this server is %s until %s; trust domains %s", w.socket, now.id,
		now.pair.Leaf.NotAfter.UTC().Format(time.RFC3339), strings.Join(now.domainNames(), ", "))
}

// getCertificate returns the current SVID, as tls.Config.GetCertificate.
func (w *workload) getCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return w.current.Load().pair, nil
}

// listExpiries returns when the last issued certificates expire, which may be within the hour.
func (w *workload) listExpiries() (all []Expiry) {
	add := func(what, subject string, c *x509.Certificate) {
		all = append(all, Expiry{
			What: what, File: "spiffe", Subject: subject, NotAfter: c.NotAfter,
			Ahead: quarterLifetime(c.NotBefore, c.NotAfter),
		})
	}
	now := w.current.Load()
	add("SVID", now.id, now.pair.Leaf)
	for _, a := range now.domains {
		for _, c := range a.cas {
			add("client CA", a.name, c)
		}
	}
	return all
}

// verifySVID verifies an X.509-SVID only with the bundle of the trust domain in its SPIFFE ID (X509-SVID, section 5).
func (w *workload) verifySVID(shown []*x509.Certificate, now time.Time) error {
	names := URINames(shown[0])
	if len(names) != 1 {
		return errors.New("does not have exactly one URI, which a SPIFFE ID requires")
	}
	id, err := spiffeid.FromString(names[0])
	if err != nil {
		return fmt.Errorf("does not have a SPIFFE ID: %w", err)
	}
	a := w.current.Load().domains[id.TrustDomain()]
	if a == nil {
		return errors.New("belongs to a trust domain without a bundle from the Workload API")
	}
	_, err = a.verifyChains(shown, now)
	return err
}

func (i *svidUpdate) domainNames() []string {
	var names []string
	for td := range maps.Keys(i.domains) {
		names = append(names, td.Name())
	}
	slices.Sort(names)
	return names
}
