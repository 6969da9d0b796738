package proctree

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

type process struct {
	parent, group, session int
	zombie                 bool
	start                  string // ticks since boot; pid and start together identify one process
}

// readProcesses reads the table of processes. A process that ends during the read is left out.
func readProcesses() map[int]process {
	all := map[int]process{}
	dir, err := os.Open("/proc")
	if err != nil {
		return all
	}
	names, _ := dir.Readdirnames(-1) // after an error, the names that were read
	_ = dir.Close()
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if p, ok := readStat(pid); ok {
			all[pid] = p
		}
	}
	return all
}

// readStat reads the entry of one process.
func readStat(pid int) (p process, ok bool) {
	text, err := readKernelFile("/proc", strconv.Itoa(pid), "stat")
	if err != nil {
		return p, false
	}
	// pid (name) state ppid pgrp session … start; the name may contain any characters.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 20 {
		return p, false
	}
	p = process{zombie: fields[0] == "Z" || fields[0] == "X", start: fields[19]}
	p.parent, _ = strconv.Atoi(fields[1]) // the kernel writes numbers
	p.group, _ = strconv.Atoi(fields[2])
	p.session, _ = strconv.Atoi(fields[3])
	return p, true
}

// readKernelFile reads a file of /proc or of a cgroup, which the kernel generates.
func readKernelFile(path ...string) ([]byte, error) {
	return os.ReadFile(filepath.Join(path...))
}
