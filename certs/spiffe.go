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
	firstSVID  = 10 * time.Second // how long a start waits for it
	watchPause = 5 * time.Second  // before a watch that was ended is begun anew
)

// SPIFFESpec names a SPIFFE Workload API.
type SPIFFESpec struct {
	Socket string `yaml:"socket"` // "unix:///run/spire/agent.sock"
}

// Workloads are the connections to SPIFFE Workload APIs, one for each socket.
// Certificates and bundles come over them as they change, so they outlive the
// configurations that name them.
type Workloads struct {
	log         *slog.Logger
	wait, pause time.Duration   // firstSVID and watchPause, but in tests
	stop        <-chan struct{} // closed when nothing waits for a first certificate any more; nil: never

	mu   sync.Mutex
	open map[string]*workload
}

// NewWorkloads returns no connection yet.
func NewWorkloads(log *slog.Logger) *Workloads {
	return &Workloads{log: log, wait: firstSVID, pause: watchPause, open: map[string]*workload{}}
}

// Until lets ctx end every wait for a first certificate that begins from now on.
// It must not be called while a configuration is loaded.
func (w *Workloads) Until(ctx context.Context) {
	if w != nil {
		w.stop = ctx.Done()
	}
}

// Retain closes the connections but that to one socket, which may be none: it
// is called with what the configuration in force names. From then on, the log
// has what is issued there.
func (w *Workloads) Retain(socket string) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, one := range w.open {
		if name == socket {
			one.use()
			continue
		}
		one.close()
		delete(w.open, name)
	}
}

// load returns the connection that spec names, with a certificate and a bundle,
// or reports what is wrong. It waits up to ten seconds for them.
func (w *Workloads) load(spec *SPIFFESpec, p *diag.List) *workload {
	p = p.At("socket")
	path, ok := strings.CutPrefix(spec.Socket, "unix://")
	switch {
	case spec.Socket == "":
		p.Errorf("is missing: the socket of the SPIFFE Workload API")
	case !ok || !filepath.IsAbs(path) || workloadapi.ValidateAddress(spec.Socket) != nil:
		p.Errorf("%q is no Unix socket: write unix:///run/spire/agent.sock (over TCP, private keys would travel in clear)", spec.Socket)
	case w == nil:
		p.Errorf("cannot be asked from here")
	case replaceable(path):
		p.Errorf("%s is in a folder that others may write to, so anybody could be the Workload API there", path)
	default:
		one, err := w.get(spec.Socket)
		if err == nil {
			return one
		}
		p.Errorf("%v", err)
	}
	return nil
}

// replaceable reports whether others could put a socket of their own in the place.
func replaceable(path string) bool {
	info, err := os.Stat(filepath.Dir(path))
	return err == nil && info.Mode().Perm()&0o002 != 0
}

func (w *Workloads) get(socket string) (*workload, error) {
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
	go one.watch(ctx, w.pause)
	select {
	case <-one.first:
		w.open[socket] = one
		return one, nil
	case <-time.After(w.wait):
	case <-w.stop:
	}
	one.close()
	return nil, fmt.Errorf("waiting %s for a certificate from %s: %w", w.wait, socket, one.failure)
}

// workload is what one Workload API says.
type workload struct {
	socket string
	log    *slog.Logger
	client *workloadapi.Client

	stop     context.CancelFunc
	stopping <-chan struct{} // closed when stop was called
	ended    chan struct{}   // closed when watch has returned

	current atomic.Pointer[issued]
	used    atomic.Bool   // by the configuration in force; what another one leads to is not logged
	first   chan struct{} // closed when current is there
	failure error         // the last, for whoever has seen ended
}

// issued is one message of the Workload API. It is never changed.
type issued struct {
	id      string
	pair    *tls.Certificate
	domains map[spiffeid.TrustDomain]*authority
}

// watch follows the Workload API until it is stopped. The library goes on after
// most errors by itself, but not after all that a server can cause.
func (w *workload) watch(ctx context.Context, pause time.Duration) {
	defer close(w.ended)
	for ctx.Err() == nil {
		_ = w.client.WatchX509Context(ctx, w) // told to OnX509ContextWatchError
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// use says that the configuration in force goes by this Workload API.
func (w *workload) use() {
	if !w.used.Swap(true) {
		w.logIssued(w.current.Load())
	}
}

func (w *workload) logIssued(now *issued) {
	w.log.Info("svid issued", "id", now.id, "until", now.pair.Leaf.NotAfter, "trust_domains", now.names())
}

func (w *workload) close() {
	w.stop()
	<-w.ended
	_ = w.client.Close()
}

// OnX509ContextUpdate takes what was issued last (SPIFFE Workload API, section
// 5.2: what a message leaves out is no longer trusted).
func (w *workload) OnX509ContextUpdate(x *workloadapi.X509Context) {
	svid := x.DefaultSVID()
	now := &issued{
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

// OnX509ContextWatchError is told why nothing is issued. What was last issued stays
// in use until it ends.
func (w *workload) OnX509ContextWatchError(err error) {
	select {
	case <-w.stopping: // which is why
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
	return fmt.Sprintf("%s, where this server is %s until %s; trust domains %s", w.socket, now.id, now.pair.Leaf.NotAfter.UTC().Format(time.RFC3339), strings.Join(now.names(), ", "))
}

// certificate is the current SVID, as tls.Config.GetCertificate.
func (w *workload) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return w.current.Load().pair, nil
}

// expiries tells when what was issued last ends, which may be within the hour.
func (w *workload) expiries() (all []Expiry) {
	add := func(what, subject string, c *x509.Certificate) {
		all = append(all, Expiry{What: what, File: "spiffe", Subject: subject, NotAfter: c.NotAfter, Ahead: quarter(c.NotBefore, c.NotAfter)})
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

// verify judges an X.509-SVID by the bundle of its own trust domain, and by no
// other (X509-SVID, section 5).
func (w *workload) verify(shown []*x509.Certificate, now time.Time) error {
	names := URINames(shown[0])
	if len(names) != 1 {
		return errors.New("has no URI, or several, and a SPIFFE ID is the only one")
	}
	id, err := spiffeid.FromString(names[0])
	if err != nil {
		return fmt.Errorf("has no SPIFFE ID: %w", err)
	}
	a := w.current.Load().domains[id.TrustDomain()]
	if a == nil {
		return errors.New("is of a trust domain whose bundle the Workload API does not give")
	}
	_, err = a.chains(shown, now)
	return err
}

func (i *issued) names() []string {
	var names []string
	for td := range maps.Keys(i.domains) {
		names = append(names, td.Name())
	}
	slices.Sort(names)
	return names
}
