package hook

import (
	"path/filepath"
	"regexp"
	"strings"
)

// kind is what a program does with its arguments, as far as it is dangerous.
type kind int

const (
	plain       kind = iota
	interpreter      // runs a script, or code from an argument
	inlineCode       // the first argument is code
	wrapper          // starts the program that its arguments name
	viaShell         // joins its arguments and gives them to a shell
	multicall        // is the program that its first argument names
	joiner           // starts a program with arguments from its input
)

// The names. A new wrapper that is missing here costs a check of the file, not
// the safety of a value: a value stays one argument of the program in the file.
var (
	shells      = regexp.MustCompile(`^(r?(ba|da|z|k|mk|pdk|a|fi|c|tc|o|y|po|hu)?sh|elvish|xonsh|nu)$`)
	inlineCodes = regexp.MustCompile(`^([gmn]?awk|g?sed)$`)
	multicalls  = regexp.MustCompile(`^(busybox|toybox|coreutils)$`)
	joiners     = regexp.MustCompile(`^(xargs|parallel)$`)
	viaShells   = regexp.MustCompile(`^(su|runuser|ssh|watch|script)$`)
	wrappers    = regexp.MustCompile(`^(env|sudo|doas|pkexec|run0|gosu|su-exec|setpriv|capsh|chpst|setuidgid|` +
		`nice|ionice|chrt|taskset|numactl|prlimit|choom|timeout|nohup|setsid|stdbuf|unbuffer|time|flock|setlock|` +
		`chroot|unshare|nsenter|proot|fakeroot|bwrap|firejail|systemd-run|systemd-inhibit|dbus-run-session|xvfb-run|` +
		`tini|dumb-init|catatonit|strace|ltrace|faketime|torsocks|proxychains4?|eatmydata|ld-(linux|musl).*)$`)
)

func programKind(name string) kind {
	switch {
	case evalOption(name) != nil:
		return interpreter
	case inlineCodes.MatchString(name):
		return inlineCode
	case wrappers.MatchString(name):
		return wrapper
	case viaShells.MatchString(name):
		return viaShell
	case multicalls.MatchString(name):
		return multicall
	case joiners.MatchString(name):
		return joiner
	}
	return plain
}

// versions are what a distribution hangs on a name: python3.13, perl5.36-x86_64-linux-gnu, bash-static.
var versions = regexp.MustCompile(`(-?[0-9]+(\.[0-9]+)*(t|-.*)?|-static|\.exe|\.distrib)$`)

func baseName(word string) string { return versions.ReplaceAllString(filepath.Base(word), "") }

// programName is what the program called word is known by: its own name, or
// that of the file behind a symbolic link. Where that is busybox, the link says
// which program it is.
func programName(word string) string {
	name := baseName(word)
	if programKind(name) != plain || !filepath.IsAbs(word) {
		return name
	}
	real, err := filepath.EvalSymlinks(word)
	if err != nil || programKind(baseName(real)) == multicall {
		return name
	}
	return baseName(real)
}

// evalOption returns what makes the program called name read code from an
// argument, or nil when name is no interpreter. Letters stand in a bundle
// (-euc), up to the one whose value is the rest of the word (-Ilib).
func evalOption(name string) *regexp.Regexp {
	if shells.MatchString(name) {
		return regexp.MustCompile(`^[-+][A-Za-z]*[csC]|^--(c|init-c)`)
	}
	form := map[string]string{ //nolint:gosec // G101: patterns of options, no passwords
		"python": `^-[^-WXmc]*c`, "pypy": `^-[^-WXmc]*c`,
		"perl": `^-[^-IMmi]*[eE]`, "raku": `^-[^-IM]*e`,
		"ruby": `^-[^-IrEKxFi]*e`,
		"node": `^-[^-rC]*[ep]|^--(eval|print|run)`, "nodejs": `^-[^-rC]*[ep]|^--(eval|print|run)`,
		"bun": `^-[^-rC]*[ep]|^--(eval|print)|^(exec|x)$`, "deno": `^eval$`,
		"php": `^-[^-cdzStf]*[rRBE]|^--(run|process)`,
		"lua": `^-[^-lj]*e`, "luajit": `^-[^-lj]*e`,
		"tclsh": `^-c`, "expect": `^-[^-]*c`, "guile": `^-[^-L]*c`,
		"Rscript": `^-e`, "osascript": `^-e`, "julia": `^-[^-L]*[eE]|^--(eval|print)`, "elixir": `^-[^-]*e|^--(eval|rpc)`,
		"groovy": `^-[^-]*e`, "octave": `^--eval`,
		"pwsh": `(?i)^--?(c|e$|ec|en)`, "powershell": `(?i)^--?(c|e$|ec|en)`,
	}[name]
	if form == "" {
		return nil
	}
	return regexp.MustCompile(form)
}

// fileOptions are options of interpreters whose value is a file and not the
// script.
var fileOptions = regexp.MustCompile(`^(-[rc]|--(rcfile|init-file|require|import|loader|experimental-loader|preload|env-file|config|import-map))$`)

// splitsArguments tells whether an option of a wrapper makes one argument many, or code.
func splitsArguments(name, option string) bool {
	form := map[string]string{
		"env":   `^-[^-uC]*S|^--s`,
		"flock": `^-[^-wE]*c|^--c`,
		"sudo":  `^-[^-ugpChrTDRU]*[si]|^--(s|l)`,
		"su":    `^-[^-gGsw]*c|^--(c|se)`, "runuser": `^-[^-gGsuw]*c|^--(c|se)`, "script": `^-[^-EIOBTmo]*c|^--c`,
	}[name]
	return form != "" && regexp.MustCompile(form).MatchString(option)
}

// isModule tells whether word is python's -m with the name of a module.
func isModule(name, word string, next []template) bool {
	if name != "python" && name != "pypy" || !pythonModule.MatchString(word) {
		return false
	}
	return !strings.HasSuffix(word, "m") || len(next) > 0 && len(next[0].holes) == 0
}

var pythonModule = regexp.MustCompile(`^-[^-WXc]*m`)
