//go:build unix && !linux && !darwin && !freebsd

package rundir

import "os"

// mountsIn returns no mounts: the program does not support the systems that this file is for.
func mountsIn(*os.Root, string) ([]string, error) { return nil, nil }
