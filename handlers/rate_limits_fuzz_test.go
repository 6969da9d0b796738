package handlers_test

import (
	"math"
	"net/netip"
	"testing"
	"time"

	"sallyport/handlers"
	"sallyport/internal/config"
)

// FuzzAddressLimit sends any sequence of requests, from any addresses and at any times, to a table with a single
// slot. The table never allows more than its bucket held at the start and has gained since.
func FuzzAddressLimit(f *testing.F) {
	f.Add(uint16(10), uint8(20), []byte{0, 0, 0, 1, 0, 2, 255, 3, 0, 0})
	f.Add(uint16(1), uint8(1), []byte{1, 1, 1, 1, 1, 1})
	f.Fuzz(func(t *testing.T, perMinute uint16, burst uint8, requests []byte) {
		limit := config.Limit{Rate: config.Rate(float64(perMinute)+1) / 60, Burst: int(burst) + 1}
		allow := handlers.NewAddressLimit(limit)
		start := time.Unix(1_800_000_000, 0)
		now, let := start, 0
		for i := 0; i+1 < len(requests); i += 2 {
			now = now.Add(time.Duration(requests[i]) * 100 * time.Millisecond)
			if allow(netip.AddrFrom4([4]byte{192, 0, 2, requests[i+1]}), now) {
				let++
			}
		}
		most := float64(limit.Burst) + now.Sub(start).Seconds()*float64(limit.Rate)
		if let > int(math.Floor(most+1e-6)) {
			t.Errorf("%d of %d requests in %s, and the bound is %.2f", let, len(requests)/2, now.Sub(start), most)
		}
	})
}
