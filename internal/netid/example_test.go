package netid_test

import (
	"fmt"
	"net/netip"

	"sallyport/internal/netid"
)

// A limit for one address counts a Host, and a share of what all have counts a Site.
func Example() {
	for _, text := range []string{"192.0.2.7", "::ffff:192.0.2.7", "2001:db8:1:2:3:4:5:6"} {
		address := netip.MustParseAddr(text)
		fmt.Println(text, "host", netid.Host(address), "site", netid.Site(address))
	}
	// Output:
	// 192.0.2.7 host 192.0.2.7 site 192.0.2.0
	// ::ffff:192.0.2.7 host 192.0.2.7 site 192.0.2.0
	// 2001:db8:1:2:3:4:5:6 host 2001:db8:1:2:: site 2001:db8:1::
}
