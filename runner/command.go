package runner

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"sallyport/internal/problem"
)

// checkCommand refuses what must not stand in a file: a program that another
// user of the machine could swap, a program picked by the sender, or a shell
// that would read an argument as code.
func checkCommand(argv []template, written []string, p *problem.List) {
	if len(argv) == 0 {
		p.Errorf("is missing: the absolute path of a program and its arguments")
		return
	}
	for i, t := range argv {
		at := p.Index(i)
		if strings.ContainsRune(written[i], 0) {
			at.Errorf("has a NUL")
		}
		if len(t.holes) > 0 && t.literals[0] != "" && strings.Trim(t.literals[0], "-") == "" {
			at.Errorf("lets the sender pick the option: write --name={%s}", t.holes[0])
		}
	}
	if len(argv[0].holes) > 0 {
		p.Index(0).Errorf("is the program, and no sender may pick that: it cannot have a hole")
		return
	}
	program := argv[0].fill(nil)
	checkExecutable(program, p.Index(0))
	checkInterpreter(program, argv, p)
}

func checkExecutable(program string, p *problem.List) {
	if !filepath.IsAbs(program) {
		p.Errorf("%q has no absolute path", program)
		return
	}
	info, err := os.Stat(program)
	switch {
	case err != nil:
		p.Errorf("%s cannot be found or read", program)
		return
	case !info.Mode().IsRegular():
		p.Errorf("%s is no file", program)
	case info.Mode()&0o111 == 0:
		p.Errorf("%s is not executable", program)
	case info.Mode()&0o022 != 0:
		p.Errorf("%s may be written by its group or by others (mode %04o): chmod go-w", program, info.Mode().Perm())
	}
	// Who may write the folder may swap the file. A sticky folder (/tmp) keeps
	// others from renaming files that are not theirs.
	real, err := filepath.EvalSymlinks(program)
	if err != nil {
		p.Errorf("%s cannot be followed to a file", program)
		return
	}
	for _, dir := range []string{filepath.Dir(program), filepath.Dir(real)} {
		info, err := os.Stat(dir)
		if err != nil || info.Mode()&0o022 != 0 && info.Mode()&os.ModeSticky == 0 {
			p.Errorf("the folder %s may be written by its group or by others", dir)
			return
		}
	}
}

func isDir(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.IsDir()
}

// shells read -c as code; wrappers start the program that their arguments name.
var (
	shells   = regexp.MustCompile(`^r?(ba|da|z|k|mk|a|fi|c|tc|el|o|y)?sh[0-9.-]*$`)
	wrappers = regexp.MustCompile(`^(env|busybox|toybox|sudo|doas|nice|nohup|timeout|setsid|stdbuf|ionice|chroot|unshare|nsenter|xargs|ssh|su|runuser|watch|script|strace|flock|parallel)$`)
	// viaShell are wrappers that join their arguments and give them to a shell.
	viaShell = regexp.MustCompile(`^(su|runuser|ssh|watch|script|flock|parallel)$`)
	versions = regexp.MustCompile(`[0-9.]+$`)
)

// evalOption returns what makes the program called name read code from an
// argument, or nil when name is no interpreter.
func evalOption(name string) *regexp.Regexp {
	if shells.MatchString(name) {
		return regexp.MustCompile(`^[-+][A-Za-z]*c|^--?(command|init-command)`)
	}
	letters := map[string]string{
		"python": "c", "pypy": "c", "perl": "eE", "ruby": "e", "node": "ep", "nodejs": "ep", "deno": "e", "bun": "ep",
		"php": "rRBE", "lua": "e", "tclsh": "c", "Rscript": "e", "osascript": "e", "pwsh": "cCe", "powershell": "cCe",
	}[versions.ReplaceAllString(name, "")]
	if letters == "" {
		return nil
	}
	return regexp.MustCompile(`^-[A-Za-z]*[` + letters + `]|^--?(eval|print|run|process-(begin|code|end)|[Cc]ommand|[Ee]ncoded[Cc]ommand)|^eval$`)
}

// checkInterpreter finds a shell or interpreter, behind wrappers too, and
// refuses to let it run anything but a script that the file names.
func checkInterpreter(program string, argv []template, p *problem.List) {
	wrapped := false
	for i, t := range argv {
		word := t.literals[0]
		name := filepath.Base(word)
		if real, err := filepath.EvalSymlinks(word); err == nil && i == 0 && evalOption(name) == nil && !wrappers.MatchString(name) {
			name = filepath.Base(real)
		}
		switch {
		case viaShell.MatchString(name) && (i == 0 || wrapped):
			checkViaShell(name, argv[i+1:], p, i+1)
		case len(t.holes) > 0 && t.bare():
			p.Index(i).Errorf("may become the program that %s starts, and no sender may pick that; give the program before it by its absolute path", program)
			return
		case evalOption(name) != nil:
			checkScript(name, argv, i, p)
			return
		case !wrappers.MatchString(name) && (i == 0 || strings.HasPrefix(word, "/")):
			return // a program of its own: what follows is for it
		}
		wrapped = wrapped || wrappers.MatchString(name)
	}
}

// checkViaShell refuses holes in, and -c for, what a shell will read.
func checkViaShell(name string, words []template, p *problem.List, at int) {
	for i, t := range words {
		if len(t.holes) > 0 || strings.HasPrefix(t.literals[0], "-c") || t.literals[0] == "--command" {
			p.Index(at+i).Errorf("%s gives its arguments to a shell: no holes and no -c; name the program itself", name)
		}
	}
}

// checkScript looks at the words after an interpreter, up to its script.
func checkScript(name string, argv []template, at int, p *problem.List) {
	eval := evalOption(name)
	for i := at + 1; i < len(argv); i++ {
		switch word := argv[i].literals[0]; {
		case eval.MatchString(word):
			p.Index(i).Errorf("%s with %s reads code from an argument: name a script or the program itself", name, word)
			return
		case len(argv[i].holes) > 0:
			p.Index(i).Errorf("may become the script that %s runs, and no sender may pick that", name)
			return
		case word == "-" || word == "-s":
			p.Index(i).Errorf("%s with %s reads code from its input", name, word)
			return
		case !strings.HasPrefix(word, "-") && !strings.HasPrefix(word, "+"):
			return // the script; what follows is its own
		}
	}
	p.Index(at).Errorf("%s without a script reads code from its input: name a script", name)
}
