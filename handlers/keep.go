package handlers

import (
	"log/slog"
	"net/http"
	"sync"

	"golang.org/x/time/rate"

	"sallyport/internal/deliveries"
	"sallyport/internal/logging"
)

// kept keeps deliveries for an operator who wants to explain one later.
type kept struct {
	folder *deliveries.Folder
	log    *slog.Logger
	pace   *rate.Limiter // of those that are not verified

	mu       sync.Mutex
	failures logging.Repeated
}

func newKept(state string, log *slog.Logger) *kept {
	return &kept{folder: deliveries.NewFolder(state), log: log, pace: rate.NewLimiter(1, 10)}
}

// keepDelivery keeps a delivery to the hooks of an endpoint, if the configuration asks for it. refused is why its
// credential was refused. A delivery that cannot be kept is handled like any other.
func (s *service) keepDelivery(r *http.Request, req *request, body []byte, at *endpoint, refused error) {
	if s.config.Keep == 0 || at == nil {
		return
	}
	k, isVerified := s.kept, refused == nil && !at.isUnauthenticated()
	if !isVerified && !k.pace.Allow() {
		return
	}
	err := k.folder.Keep(&deliveries.Delivery{
		Request: req.id, At: s.now(), Address: remoteAddr(r).Unmap().String(), Method: r.Method, Host: r.Host,
		URL: r.URL.RequestURI(), Header: r.Header, Body: body,
	}, isVerified)
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case err == nil:
		k.failures.Over()
	case k.failures.IsNew(err):
		k.log.Error("a delivery cannot be kept to be explained", "request", req.id, "error", err)
	}
}
