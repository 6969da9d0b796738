// Package netid tells senders apart before they have proved anything: by where
// they are. Who has an IPv6 prefix has all addresses in it.
package netid

import (
	"net"
	"net/netip"
)

// AddrPort is the address of one end of a connection, zero if it has none.
func AddrPort(a net.Addr) netip.AddrPort {
	if tcp, ok := a.(*net.TCPAddr); ok {
		port := tcp.AddrPort()
		return netip.AddrPortFrom(port.Addr().Unmap(), port.Port())
	}
	return netip.AddrPort{}
}

// Host is an IPv4 address, or the /64 that one IPv6 host can fill at will.
func Host(a netip.Addr) netip.Addr {
	if a = a.Unmap(); a.Is4() {
		return a
	}
	return maskAddress(a, 64)
}

// Site is an IPv4 /24, which is the least that is routed on its own, or the IPv6 /48
// that is the most that one customer is usually given (RFC 6177): 65536 Hosts.
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
