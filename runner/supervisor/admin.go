package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"

	"sallyport/runner/process/proctree"
)

// adminSocket is the socket in the state folder by which local administrators reach the server.
const adminSocket = "admin.sock"

// AdminConn is a connection of a local administrator: root or the user of this process. A command is refused,
// although it runs as that user. UID is the administrator's user id.
type AdminConn struct {
	*net.UnixConn

	UID int
}

// ListenForAdmin listens on the socket of the state folder by which local administrators reach the server. Accept
// returns an AdminConn; other connections are closed and logged. This process must hold the state folder, because
// ListenForAdmin replaces the socket that an earlier server left.
func (c *Client) ListenForAdmin(ctx context.Context) (net.Listener, error) {
	if err := os.Remove(filepath.Join(c.o.State, adminSocket)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var l net.Listener
	err := withSocket(c.o.State, adminSocket, func(path string) (err error) {
		if l, err = new(net.ListenConfig).Listen(ctx, "unix", path); err != nil {
			return err
		}
		return os.Chmod(path, 0o600)
	})
	if err != nil {
		return nil, fmt.Errorf("listening for local administrators: %w", err)
	}
	return &adminListener{l, c}, nil
}

// DialAdmin connects to the server that uses the state folder.
func DialAdmin(ctx context.Context, state string) (conn net.Conn, err error) {
	err = withSocket(state, adminSocket, func(path string) (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, "unix", path)
		return err
	})
	return conn, err
}

type adminListener struct {
	net.Listener

	client *Client
}

// Accept implements net.Listener.
func (l *adminListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		admin, err := l.client.checkAdmin(conn)
		if err == nil {
			return admin, nil
		}
		l.client.o.Log.LogAttrs(context.Background(), slog.LevelWarn, "connection to the admin socket refused",
			slog.Any("error", err))
		_ = conn.Close() // nothing was read
	}
}

// checkAdmin returns the connection of a local administrator, and refuses any other.
func (c *Client) checkAdmin(conn net.Conn) (*AdminConn, error) {
	local, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("a connection of type %T", conn)
	}
	uid, pid, err := peerCredentials(local)
	if err != nil {
		return nil, fmt.Errorf("reading the credentials of the peer: %w", err)
	}
	if uid != 0 && uid != os.Geteuid() {
		return nil, fmt.Errorf("the peer runs as user %d, which is neither root nor %d", uid, os.Geteuid())
	}
	isRun := func(id string) bool {
		_, err := os.Stat(filepath.Join(c.o.State, "runs", id))
		return err == nil
	}
	if err := proctree.CheckStranger(pid, c.PID(), isRun); err != nil {
		return nil, err
	}
	return &AdminConn{local, uid}, nil
}
