package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
)

// privileged is the first port that every user may listen on, unless the system has another setting.
const privileged = 1024

// openListener listens on host:port. An IPv4 address must not include IPv6: with the network "tcp", 0.0.0.0 would mean
// all addresses, also those of IPv6.
func openListener(ctx context.Context, address string) (net.Listener, error) {
	network := "tcp"
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", address, err)
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.Is4() {
		network = "tcp4"
	}
	l, err := new(net.ListenConfig).Listen(ctx, network, address)
	if n, bad := strconv.Atoi(port); errors.Is(err, syscall.EACCES) && bad == nil && n < privileged {
		return nil, fmt.Errorf("%w: only root may listen on a port below %d; give the service "+
			"AmbientCapabilities=CAP_NET_BIND_SERVICE, "+
			"or have systemd listen for it (a socket unit with ListenStream=%d)", err, privileged, n)
	}
	return l, err
}
