package server

import (
	"net"

	"sallyport/internal/live"
)

// Limit bounds the connections of a listener.
func Limit(l net.Listener, conf *live.Configuration, s Surface) net.Listener {
	return limit(l, conf, s)
}
