package netid

import (
	"fmt"
	"net/netip"
)

// Network is a network of the configuration file: a prefix, or a single address.
type Network struct{ prefix netip.Prefix }

// UnmarshalText reads 10.1.0.0/16, 2001:db8::/32 or a single address. It refuses a prefix with host bits, because only
// its author knows whether the network or the host is meant.
func (n *Network) UnmarshalText(text []byte) error {
	s := string(text)
	prefix, err := netip.ParsePrefix(s)
	if err != nil {
		address, bad := netip.ParseAddr(s)
		if bad != nil || address.Zone() != "" {
			return fmt.Errorf("%.80q is not a network: write 10.1.0.0/16, 2001:db8::/32, or one address", s)
		}
		prefix = netip.PrefixFrom(address, address.BitLen())
	}
	switch address := prefix.Addr(); {
	case address.Is4In6() && prefix.Bits() >= 96:
		v4 := netip.PrefixFrom(address.Unmap(), prefix.Bits()-96)
		return fmt.Errorf("%s is an IPv4 network in IPv6 form: write %s", s, Network{v4})
	case prefix != prefix.Masked():
		return fmt.Errorf("%s has bits after its first %d: write %s for the network, or %s for the one address",
			s, prefix.Bits(), prefix.Masked(), address)
	}
	n.prefix = prefix
	return nil
}

// Contains reports whether an address is in the network. An IPv4 address in IPv6 form is an IPv4 address.
func (n Network) Contains(a netip.Addr) bool { return n.prefix.Contains(a.Unmap().WithZone("")) }

// String returns the network as the file has it.
func (n Network) String() string {
	if n.prefix.IsSingleIP() {
		return n.prefix.Addr().String()
	}
	return n.prefix.String()
}
