package process

import (
	"fmt"
	"os"
)

// StartServer starts the program anew, beside this process, with files as its
// descriptors from 3 on. It is not followed: it outlives this process.
func StartServer(exe string, args, env []string, files ...*os.File) error {
	p, err := os.StartProcess(exe, append([]string{exe}, args...), &os.ProcAttr{
		Env: env, Files: append([]*os.File{os.Stdin, os.Stdout, os.Stderr}, files...),
	})
	if err != nil {
		return fmt.Errorf("starting the next server: %w", err)
	}
	return p.Release()
}
