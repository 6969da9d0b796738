// Package netid groups senders by network address, before they are authenticated. All addresses of an IPv6 prefix are
// one sender, because the holder of the prefix can use each of them.
//
// A [Host] is what one machine can use, and a [Site] what one customer can. A [Connection] is known to the requests
// that it carries ([ConnectionOf]), so that they can report what it has proved and how it was answered. The functions
// have no state and accept every address: what they cannot group is returned as it is.
package netid

import (
	"net"
	"net/netip"
)

// AddrPort returns the address of one end of a connection, or zero if it has none.
func AddrPort(a net.Addr) netip.AddrPort {
	if tcp, ok := a.(*net.TCPAddr); ok {
		port := tcp.AddrPort()
		return netip.AddrPortFrom(port.Addr().Unmap(), port.Port())
	}
	return netip.AddrPort{}
}

// Host returns an IPv4 address as it is, or the /64 of an IPv6 address, because one IPv6 host can use a whole /64.
func Host(a netip.Addr) netip.Addr {
	if a = a.Unmap(); a.Is4() {
		return a
	}
	return maskAddress(a, 64)
}

// Site returns the /24 of an IPv4 address, which is the smallest prefix that is routed separately, or the /48 of an
// IPv6 address, which is the largest prefix that one customer usually gets (RFC 6177). It has 65536 Hosts.
func Site(a netip.Addr) netip.Addr {
	if a = a.Unmap(); a.Is4() {
		return maskAddress(a, 24)
	}
	return maskAddress(a, 48)
}

func maskAddress(a netip.Addr, bits int) netip.Addr {
	if p, err := a.WithZone("").Prefix(bits); err == nil {
		return p.Addr()
	}
	return a
}
