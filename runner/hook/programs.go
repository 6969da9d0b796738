package hook

import (
	"path/filepath"
	"regexp"
	"strings"
)

// kind is what a program does with its arguments, as far as that is dangerous.
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

// The names of the programs. A wrapper that is missing here escapes a check of the file, but values stay safe: each
// value is still one argument of the program in the file.
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

// versions matches the suffixes that distributions add to names: python3.13, perl5.36-x86_64-linux-gnu, bash-static.
var versions = regexp.MustCompile(`(-?[0-9]+(\.[0-9]+)*(t|-.*)?|-static|\.exe|\.distrib)$`)

func baseName(word string) string { return versions.ReplaceAllString(filepath.Base(word), "") }

// programName returns the name by which a program is known: the base name of word, or that of the file behind a
// symbolic link. If that file is busybox or similar, the name of the link says which program it runs as.
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

// evalOption returns a pattern of the options with which the program called name reads code from an argument, or nil if
// the program is not an interpreter. Options of one letter can be combined (-euc), up to the first one with the rest of
// the argument as its value (-Ilib).
func evalOption(name string) *regexp.Regexp {
	if shells.MatchString(name) {
		return regexp.MustCompile(`^[-+][A-Za-z]*[csC]|^--(c|init-c)`)
	}
	form := map[string]string{ //nolint:gosec // G101: patterns of options, not passwords
		"python": `^-[^-WXmc]*c`, "pypy": `^-[^-WXmc]*c`,
		"perl": `^-[^-IMmi]*[eE]`, "raku": `^-[^-IM]*e`,
		"ruby": `^-[^-IrEKxFi]*e`,
		"node": `^-[^-rC]*[ep]|^--(eval|print|run)`, "nodejs": `^-[^-rC]*[ep]|^--(eval|print|run)`,
		"bun": `^-[^-rC]*[ep]|^--(eval|print)|^(exec|x)$`, "deno": `^eval$`,
		"php": `^-[^-cdzStf]*[rRBE]|^--(run|process)`,
		"lua": `^-[^-lj]*e`, "luajit": `^-[^-lj]*e`,
		"tclsh": `^-c`, "expect": `^-[^-]*c`, "guile": `^-[^-L]*c`,
		"Rscript": `^-e`, "osascript": `^-e`, "julia": `^-[^-L]*[eE]|^--(eval|print)`,
		"elixir": `^-[^-]*e|^--(eval|rpc)`,
		"groovy": `^-[^-]*e`, "octave": `^--eval`,
		"pwsh": `(?i)^--?(c|e$|ec|en)`, "powershell": `(?i)^--?(c|e$|ec|en)`,
	}[name]
	if form == "" {
		return nil
	}
	return regexp.MustCompile(form)
}

// fileOptions matches options of interpreters with a file as their value that is not the script.
var fileOptions = regexp.MustCompile(`^(-[rc]|--(rcfile|init-file|require|import|loader|` +
	`experimental-loader|preload|env-file|config|import-map))$`)

// splitsArguments reports whether an option makes a wrapper split one argument into several, or read it as code.
func splitsArguments(name, option string) bool {
	form := map[string]string{
		"env":   `^-[^-uC]*S|^--s`,
		"flock": `^-[^-wE]*c|^--c`,
		"sudo":  `^-[^-ugpChrTDRU]*[si]|^--(s|l)`,
		"su":    `^-[^-gGsw]*c|^--(c|se)`, "runuser": `^-[^-gGsuw]*c|^--(c|se)`, "script": `^-[^-EIOBTmo]*c|^--c`,
	}[name]
	return form != "" && regexp.MustCompile(form).MatchString(option)
}

// isModule reports whether word is the option -m of python with the name of a module.
func isModule(name, word string, next []template) bool {
	if name != "python" && name != "pypy" || !pythonModule.MatchString(word) {
		return false
	}
	return !strings.HasSuffix(word, "m") || len(next) > 0 && len(next[0].holes) == 0
}

var pythonModule = regexp.MustCompile(`^-[^-WXc]*m`)
