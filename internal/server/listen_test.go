package server_test

import (
	"net"
	"net/netip"
	"testing"

	"sallyport/internal/server"
	"sallyport/internal/testenv"
)

// TestOpen_IPv4AddressIsNotIPv6: an operator that configures 0.0.0.0 has restricted the server to IPv4.
func TestOpen_IPv4AddressIsNotIPv6(t *testing.T) {
	six, err := new(net.ListenConfig).Listen(t.Context(), "tcp6", "[::1]:0")
	if err != nil {
		testenv.Skip(t, "listening on IPv4 alone, because this machine has no IPv6")
	}
	if err := six.Close(); err != nil {
		t.Fatal(err)
	}
	for address, wantSix := range map[string]bool{"0.0.0.0:0": false, "127.0.0.1:0": false, ":0": true, "[::]:0": true, "[::1]:0": true} {
		l, err := server.Open(t.Context(), address)
		if err != nil {
			t.Fatal(err)
		}
		port := netip.MustParseAddrPort(l.Addr().String()).Port()
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp6", netip.AddrPortFrom(netip.IPv6Loopback(), port).String())
		if (err == nil) != wantSix {
			t.Errorf("%s: connecting by IPv6: %v", address, err)
		}
		if err == nil {
			_ = conn.Close()
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
