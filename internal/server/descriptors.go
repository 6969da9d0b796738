package server

import (
	"log/slog"
	"syscall"

	"sallyport/internal/config"
)

// spareDescriptors is the number of files that the server needs in addition to connections: for the store, the audit
// log, outputs that are read and the supervisor.
const spareDescriptors = 128

// WarnOfDescriptors logs a warning if the process may not open as many files as the limits allow connections. The Go
// runtime has already raised the soft limit to the hard limit.
func WarnOfDescriptors(l config.Limits, log *slog.Logger) {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		log.Warn("the limit of open files is unknown", "error", err)
		return
	}
	need := uint64(l.Connections) + spareDescriptors //nolint:gosec // checked to be positive
	if need > uint64(files.Cur) {                    //nolint:unconvert // a signed number on some systems
		log.Warn("limits.connections is above the limit of open files (ulimit -n, LimitNOFILE=)",
			"connections", l.Connections, "open_files", uint64(files.Cur), "needed", need)
	}
}
