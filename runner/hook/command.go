package hook

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"sallyport/internal/diag"
	"sallyport/internal/pathsafe"
)

// checkCommand refuses what is not safe in a command: a program that another user of the machine could replace, a
// program or an option that the sender picks, and a shell that would read an argument as code. searchPath is the PATH
// of the command.
func checkCommand(argv []template, written []string, searchPath string, p *diag.List) {
	if len(argv) == 0 {
		p.Errorf("is missing: the absolute path of a program and its arguments")
		return
	}
	for i, t := range argv {
		at := p.Index(i)
		if strings.ContainsRune(written[i], 0) {
			at.Errorf("has a NUL")
		}
		if lead := t.literals[0]; len(t.holes) > 0 &&
			(lead == "-" || strings.HasPrefix(lead, "--") && !strings.Contains(lead, "=")) {
			at.Errorf("lets the sender choose the option: write --name={%s}", t.holes[0])
		}
	}
	if len(argv[0].holes) > 0 {
		p.Index(0).Errorf("is the program, which the sender must not choose: it cannot have a hole")
		return
	}
	program := argv[0].literals[0]
	if !filepath.IsAbs(program) {
		p.Index(0).Errorf("%q is not an absolute path", program)
		return
	}
	checkExecutable(program, searchPath, p.Index(0))
	checkProgram(argv, 0, p)
}

// checkFile refuses a file that other users may write, or replace because they may write or own a folder or a link of
// its path. It returns the mode of the file.
func checkFile(name string, p *diag.List) fs.FileMode {
	way, err := pathsafe.ResolvePath(name)
	if err != nil {
		p.Errorf("%s does not exist or cannot be read", name)
		return fs.ModeIrregular
	}
	for _, fault := range pathsafe.FindFaults(name, way) {
		p.Errorf("%s", fault)
	}
	return way[len(way)-1].Mode()
}

func isFolder(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.IsDir()
}

// checkProgram checks what the program argv[at] would do with the arguments after it: run one of them, or read one as
// code. It knows the common shells, interpreters and wrappers. Any other program is trusted with its arguments.
func checkProgram(argv []template, at int, p *diag.List) {
	name := programName(argv[at].literals[0])
	switch programKind(name) {
	case interpreter:
		checkScript(name, argv, at, p)
	case wrapper:
		checkWrapped(name, argv, at, p)
	case viaShell:
		checkViaShell(name, argv, at, p)
	case multicall:
		checkApplet(name, argv, at, p)
	case inlineCode:
		for i := at + 1; i < len(argv); i++ {
			if len(argv[i].holes) > 0 {
				p.Index(i).Errorf("%s reads arguments as code, which the sender must not write: remove the hole, or "+
					"call it from a script", name)
			}
		}
	case joiner:
		p.Index(at).Errorf("%s turns its input into arguments: name the program itself", name)
	case plain:
		checkHidden(argv, at, p)
	}
}

// checkHidden finds a shell that gets code from an argument although an unknown program precedes it, as in kubectl
// exec pod -- sh -c.
func checkHidden(argv []template, at int, p *diag.List) {
	for i := at + 1; i < len(argv)-1; i++ {
		name := baseName(argv[i].literals[0])
		if shells.MatchString(name) && len(argv[i].holes) == 0 && evalOption(name).MatchString(argv[i+1].literals[0]) {
			refuseEval(name, argv[i+1], p.Index(i+1))
		}
	}
}

func refuseEval(name string, t template, p *diag.List) {
	p.Errorf("%s with %s reads code from an argument: name a script or the program itself", name, t.literals[0])
}

// checkWrapped checks the arguments between a wrapper and the program that it starts, and then that program.
func checkWrapped(name string, argv []template, at int, p *diag.List) {
	for i := at + 1; i < len(argv); i++ {
		word := argv[i].literals[0]
		if len(argv[i].holes) > 0 {
			p.Index(i).Errorf("comes before the program that %s starts, so it cannot have a hole: give that program "+
				"by its absolute path, and variables under env", name)
			return
		}
		if strings.HasPrefix(word, "-") {
			if splitsArguments(name, word) {
				p.Index(i).Errorf("%s with %s splits an argument into words, or reads it as code: write each word as "+
					"one argument", name, word)
				return
			}
			continue
		}
		if filepath.IsAbs(word) && isExecutable(word) {
			checkExecutable(word, "", p.Index(i))
			checkProgram(argv, i, p)
			return
		}
		if !strings.Contains(word, "/") && programKind(programName(word)) != plain { // env python3 /opt/job.py
			checkProgram(argv, i, p)
			return
		}
	}
	p.Index(at).Errorf("%s does not start a program that is given by its absolute path", name)
}

func isExecutable(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// checkApplet checks the argument after a multicall program, which names the program that it runs as.
func checkApplet(name string, argv []template, at int, p *diag.List) {
	switch {
	case at+1 == len(argv):
		p.Index(at).Errorf("%s needs the name of an applet", name)
	case len(argv[at+1].holes) > 0:
		p.Index(at + 1).Errorf("is the program, which the sender must not choose: it cannot have a hole")
	default:
		checkProgram(argv, at+1, p)
	}
}

// checkViaShell refuses holes in arguments that a shell will read, and options that pass code to it.
func checkViaShell(name string, argv []template, at int, p *diag.List) {
	for i := at + 1; i < len(argv); i++ {
		if len(argv[i].holes) > 0 || splitsArguments(name, argv[i].literals[0]) {
			p.Index(i).Errorf("%s passes its arguments to a shell: remove holes and -c, and name the program "+
				"itself", name)
		}
	}
}

// checkScript checks the arguments after an interpreter up to its script, which is a file given by its absolute path.
// The arguments after that belong to the script.
func checkScript(name string, argv []template, at int, p *diag.List) {
	eval := evalOption(name)
	for i := at + 1; i < len(argv); i++ {
		word := argv[i].literals[0]
		switch {
		case eval.MatchString(word):
			refuseEval(name, argv[i], p.Index(i))
			return
		case len(argv[i].holes) > 0:
			p.Index(i).Errorf("may become the script that %s runs, which the sender must not choose: give the script "+
				"before it by its absolute path", name)
			return
		case word == "-", strings.HasPrefix(word, "/dev/"), strings.HasPrefix(word, "/proc/"):
			p.Index(i).Errorf("%s with %s reads code from its input: name a script", name, word)
			return
		case isModule(name, word, argv[i+1:]):
			return
		case !filepath.IsAbs(word), isFolder(word), fileOptions.MatchString(argv[i-1].literals[0]):
			// An option, or its value: -o pipefail, -I /opt/lib.
		default:
			checkFile(word, p.Index(i))
			return
		}
	}
	p.Index(at).Errorf("%s needs a script, given by its absolute path", name)
}
