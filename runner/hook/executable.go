package hook

import (
	"bytes"
	"debug/elf"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"sallyport/internal/diag"
)

// DefaultPath is the PATH of a command if its hook sets no PATH.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

const (
	firstBytes     = 256 // Linux reads so many bytes to find out how to execute a file (BINPRM_BUF_SIZE)
	maxInterpreter = 4   // the most levels of interpreters that are scripts themselves
	byteOrderMark  = "\xef\xbb\xbf"
)

// checkExecutable refuses a program, given by its absolute path, that does not exist, that other users may replace,
// or that the kernel cannot execute. searchPath is the PATH of the program, or empty where that is not known.
func checkExecutable(program, searchPath string, p *diag.List) {
	checkExecutableAt(program, searchPath, 0, p)
}

func checkExecutableAt(program, searchPath string, depth int, p *diag.List) {
	mode := checkFile(program, p)
	if !mode.IsRegular() {
		return
	}
	if mode&0o111 == 0 {
		p.Errorf("%s is not executable: chmod +x", program)
		return
	}
	f, err := os.Open(program)
	if err != nil {
		return // a file that cannot be read may still be executable
	}
	defer func() { _ = f.Close() }() // only read
	first := make([]byte, firstBytes)
	n, err := io.ReadFull(f, first)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return
	}
	first = first[:n]
	script, isScript := bytes.CutPrefix(first, []byte("#!"))
	switch {
	case isScript:
		checkFirstLine(program, script, searchPath, depth, p)
	case n == 0:
		p.Errorf("%s is empty", program)
	case bytes.HasPrefix(first, []byte(byteOrderMark)):
		p.Errorf("%s begins with a byte order mark, which hides its #! from the system: save it as UTF-8 without one",
			program)
	case bytes.HasPrefix(first, []byte(elf.ELFMAG)):
		checkLoader(program, f, p)
	case runtime.GOOS == "linux" || runtime.GOOS == "freebsd": // other systems have other executable formats
		p.Errorf("%s is neither a program of this system nor a script with an interpreter: write #!/bin/sh, or "+
			"another, as its first line", program)
	}
}

// checkFirstLine checks what follows #! in a script, as the kernel reads it.
func checkFirstLine(script string, first []byte, searchPath string, depth int, p *diag.List) {
	line, _, _ := strings.Cut(string(first), "\n")
	line = strings.Trim(line, " \t")
	if strings.HasSuffix(line, "\r") {
		p.Errorf("the first line of %s ends with CR LF, and the system reads the CR as a part of it: convert the "+
			"file, as dos2unix does", script)
		return
	}
	interpreter, argument := line, ""
	if i := strings.IndexAny(line, " \t"); i >= 0 {
		interpreter, argument = line[:i], strings.Trim(line[i:], " \t")
	}
	if !filepath.IsAbs(interpreter) {
		p.Errorf("the first line of %s names the interpreter %q: it needs an absolute path", script, interpreter)
		return
	}
	if _, err := os.Stat(interpreter); errors.Is(err, fs.ErrNotExist) {
		p.Errorf("the interpreter %s of %s does not exist: install it, or change the first line", interpreter, script)
		return
	}
	if depth == maxInterpreter {
		p.Errorf("%s is at the end of a longer chain of interpreters than the system allows", script)
		return
	}
	checkExecutableAt(interpreter, "", depth+1, p)
	named := argument != "" && argument[0] != '-' && !strings.ContainsAny(argument, "=/")
	if filepath.Base(interpreter) == "env" && named && searchPath != "" && runtime.GOOS == "linux" {
		checkFound(script, argument, searchPath, p)
	}
}

// checkFound looks for the program that the first line of a script has env search for. Linux passes the rest of the
// line to env as one argument.
func checkFound(script, name, searchPath string, p *diag.List) {
	for _, dir := range filepath.SplitList(searchPath) {
		if isExecutable(filepath.Join(dir, name)) {
			return
		}
	}
	p.Errorf("%s is run by %q, and the PATH of the command has no such program (%s): install it, or set PATH under env",
		script, name, searchPath)
}

// checkLoader refuses a program without its dynamic loader, for example a program for glibc on a system with musl. The
// error of the system does not say what is missing: for the program, its loader and an interpreter alike, it is "no
// such file or directory".
func checkLoader(program string, f *os.File, p *diag.List) {
	file, err := elf.NewFile(f)
	if err != nil {
		return // the kernel reads less of the file, and may accept it
	}
	for _, part := range file.Progs {
		if part.Type != elf.PT_INTERP || part.Filesz > firstBytes {
			continue
		}
		name, err := io.ReadAll(part.Open())
		if err != nil {
			return
		}
		loader := string(bytes.TrimRight(name, "\x00"))
		if _, err := os.Stat(loader); errors.Is(err, fs.ErrNotExist) {
			p.Errorf("the loader %s of %s does not exist: it is a program for another system or C library", loader,
				program)
		}
	}
}
