package netid_test

import (
	"net"
	"net/netip"
	"testing"

	"sallyport/internal/netid"
)

func TestHost_OnePrefix(t *testing.T) {
	for text, want := range map[string]struct{ host, site string }{
		"192.0.2.1":            {"192.0.2.1", "192.0.2.0"},
		"::ffff:192.0.2.1":     {"192.0.2.1", "192.0.2.0"}, // as in a socket for both protocols
		"2001:db8:1:2:3:4:5:6": {"2001:db8:1:2::", "2001:db8:1::"},
		"2001:db8:1:ffff::1":   {"2001:db8:1:ffff::", "2001:db8:1::"},
		"fe80::1%eth0":         {"fe80::", "fe80::"},
		"::1":                  {"::", "::"},
	} {
		a := netip.MustParseAddr(text)
		if host, site := netid.Host(a).String(), netid.Site(a).String(); host != want.host || site != want.site {
			t.Errorf("%s is of %s and %s, want %v", text, host, site, want)
		}
	}
	if a := netid.AddrPort(&net.UnixAddr{}).Addr(); a.IsValid() || netid.Host(a) != a {
		t.Errorf("a socket without an address has %s", a)
	}
}
