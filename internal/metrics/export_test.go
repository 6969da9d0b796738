package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"sallyport/auth"
	"sallyport/certs"
	"sallyport/internal/keyuse"
)

// Trust collects the metrics of these certificates and keys.
func Trust(expiries []certs.Expiry, uses *keyuse.Table) prometheus.Collector {
	return newTrust(func() []certs.Expiry { return expiries }, func() []auth.KeyInfo { return nil }, uses)
}
