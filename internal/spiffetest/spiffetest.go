// Package spiffetest is a SPIFFE Workload API for tests: an [Agent] that speaks the real protocol on a Unix socket, and
// trust domains to issue from ([Domain]). [Hang] is an agent that accepts a connection and never answers.
package spiffetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Domain is a trust domain and its CA.
type Domain struct {
	ID string // "spiffe://corp"
	CA *x509.Certificate

	key *ecdsa.PrivateKey
}

// NewDomain returns a trust domain with a new CA.
func NewDomain(id string) (*Domain, error) {
	d := &Domain{ID: id}
	pair, err := d.issueCertificate(&x509.Certificate{
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, id)
	d.CA = pair.Leaf
	return d, err
}

// SVID issues a certificate for a SPIFFE ID, of this domain or of another.
func (d *Domain) SVID(id string, dns ...string) (tls.Certificate, error) {
	return d.issueCertificate(&x509.Certificate{
		DNSNames: dns, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, id)
}

// Raw issues a certificate with exactly these bytes as URI.
func (d *Domain) Raw(uri string) (tls.Certificate, error) {
	san, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(uri)}})
	if err != nil {
		return tls.Certificate{}, err
	}
	return d.issueCertificate(&x509.Certificate{
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: san}},
	}, d.ID)
}

// issueCertificate signs a certificate; the first one is the domain's own.
func (d *Domain) issueCertificate(c *x509.Certificate, id string) (pair tls.Certificate, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair, err
	}
	uri, err := url.Parse(id)
	if err != nil {
		return pair, err
	}
	c.URIs = []*url.URL{uri}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	parent := d.CA
	if parent == nil {
		parent, d.key = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), d.key)
	if err != nil {
		return pair, err
	}
	leaf, err := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, err
}

// Agent is a Workload API. It issues the same response to all clients.
type Agent struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	server *grpc.Server

	calls  atomic.Int64 // in progress
	issued atomic.Pointer[issued]
}

// issued is what an Agent sends until it has something newer.
type issued struct {
	response *workload.X509SVIDResponse // nil before anything was issued
	replaced chan struct{}              // closed when there is something newer
	canceled chan struct{}              // closed to end the calls in progress
}

func newIssued(response *workload.X509SVIDResponse) *issued {
	return &issued{response, make(chan struct{}), make(chan struct{})}
}

// Listen starts a Workload API that has nothing to issue yet.
func Listen(socket string) (*Agent, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
	if err != nil {
		return nil, err
	}
	a := &Agent{server: grpc.NewServer()}
	a.issued.Store(newIssued(nil))
	workload.RegisterSpiffeWorkloadAPIServer(a.server, a)
	go func() { _ = a.server.Serve(l) }()
	return a, nil
}

// Stop closes the socket and every connection.
func (a *Agent) Stop() { a.server.Stop() }

// Cancel ends every call with the code Canceled, which also means that the caller has canceled it. Cancel and Issue
// must not be called concurrently.
func (a *Agent) Cancel() {
	old := a.issued.Load()
	a.issued.Store(newIssued(old.response))
	close(old.canceled)
}

// Calls returns how many calls are in progress.
func (a *Agent) Calls() int { return int(a.calls.Load()) }

// Issue issues a server's SVID with the bundle of its domain, and those of the federated ones.
func (a *Agent) Issue(svid tls.Certificate, own *Domain, federated ...*Domain) error {
	key, err := x509.MarshalPKCS8PrivateKey(svid.PrivateKey)
	if err != nil {
		return err
	}
	r := &workload.X509SVIDResponse{FederatedBundles: map[string][]byte{}, Svids: []*workload.X509SVID{{
		SpiffeId: svid.Leaf.URIs[0].String(), X509Svid: svid.Certificate[0], X509SvidKey: key, Bundle: own.CA.Raw,
	}}}
	for _, d := range federated {
		r.FederatedBundles[d.ID] = d.CA.Raw
	}
	close(a.issued.Swap(newIssued(r)).replaced)
	return nil
}

// FetchX509SVID is the only implemented call.
func (a *Agent) FetchX509SVID(
	_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse],
) error {
	a.calls.Add(1)
	defer a.calls.Add(-1)
	for {
		now := a.issued.Load()
		if now.response == nil {
			return status.Error(codes.PermissionDenied, "no identity issued")
		}
		if err := stream.Send(now.response); err != nil {
			return err
		}
		select {
		case <-now.replaced:
		case <-now.canceled:
			return status.Error(codes.Canceled, "going")
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// Hang starts a Workload API that takes connections and never answers. It sends on accepted for each of them.
func Hang(socket string) (accepted <-chan struct{}, stop func(), err error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
	if err != nil {
		return nil, nil, err
	}
	taken := make(chan struct{}, 100)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer func() { _ = conn.Close() }()
			taken <- struct{}{}
		}
	}()
	return taken, func() { _ = l.Close() }, nil
}
