package netid_test

import (
	"net/netip"
	"strings"
	"testing"

	"sallyport/internal/netid"
)

// TestNetwork_Contains has the forms of networks and of addresses that a server sees.
func TestNetwork_Contains(t *testing.T) {
	for _, x := range []struct {
		network, address string
		want             bool
	}{
		{"10.1.0.0/16", "10.1.255.255", true},
		{"10.1.0.0/16", "10.2.0.0", false},
		{"10.1.0.0/16", "::ffff:10.1.2.3", true},
		{"10.1.2.3", "10.1.2.3", true},
		{"10.1.2.3", "10.1.2.4", false},
		{"2001:db8::/32", "2001:db8:1::1", true},
		{"2001:db8::/32", "2001:db9::1", false},
		{"fe80::/10", "fe80::1%eth0", true},
		{"::1", "::1", true},
		{"::1", "127.0.0.1", false},
		{"0.0.0.0/0", "2001:db8::1", false},
		{"::/0", "::ffff:10.1.2.3", false},
	} {
		var n netid.Network
		if err := n.UnmarshalText([]byte(x.network)); err != nil {
			t.Fatal(err)
		}
		if n.Contains(netip.MustParseAddr(x.address)) != x.want || n.String() != x.network {
			t.Errorf("%s in %s (%s): not %v", x.address, x.network, n, x.want)
		}
	}
	if (netid.Network{}).Contains(netip.MustParseAddr("::1")) || (netid.Network{}).Contains(netip.Addr{}) {
		t.Error("a network that was not read contains an address")
	}
	var all netid.Network
	if err := all.UnmarshalText([]byte("0.0.0.0/0")); err != nil || all.Contains(netip.Addr{}) {
		t.Errorf("an unknown address is in %s; %v", all, err)
	}
}

// TestNetwork_Refused holds each error to what its author can write instead.
func TestNetwork_Refused(t *testing.T) {
	for text, want := range map[string]string{
		"10.1.2.3/16":         "write 10.1.0.0/16 for the network, or 10.1.2.3 for the one address",
		"2001:db8::1/32":      "write 2001:db8::/32 for the network, or 2001:db8::1 for the one address",
		"::ffff:10.1.0.0/112": "write 10.1.0.0/16",
		"::ffff:10.1.2.3":     "write 10.1.2.3",
		"10.1":                "is not a network",
		"10.1.0.0/33":         "is not a network",
		"10.01.0.0/16":        "is not a network",
		"fe80::1%eth0":        "is not a network",
		"corp.example":        "is not a network",
		"":                    "is not a network",
	} {
		var n netid.Network
		if err := n.UnmarshalText([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}
