package hook_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sallyport/internal/testenv"
	"sallyport/runner/hook"
)

func command(words ...string) hook.Spec { return hook.Spec{Command: words} }

// system returns a folder with programs of the usual names, so that the tests do not need any of them to be
// installed.
func system(t *testing.T) string {
	t.Helper()
	dir := folder(t, 0o755)
	for _, name := range strings.Fields("echo sh bash perl python3 env timeout nice flock xargs awk sed script su watch find") {
		if err := os.Rename(file(t, name, 0o755), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir + "/"
}

func params(words []string) (names []string) {
	for _, name := range []string{"x", "y"} {
		if strings.Contains(strings.Join(words, " "), "{"+name+"}") {
			names = append(names, name)
		}
	}
	return names
}

func TestCommand_Allowed(t *testing.T) {
	bin, job, script := system(t), file(t, "job", 0o755), file(t, "job.py", 0o644)
	for _, line := range []string{
		"/bin/echo",
		"/bin/echo {x} --y={y}",
		"/bin/echo -o{x}", // the value of an option of the file
		"/bin/echo -Dname={x}",
		"/bin/echo -- {x}",
		"/bin/echo -c {x}", // for echo, -c is nothing
		"JOB {x}",
		"/usr/bin/timeout 60 JOB {x}",
		"/usr/bin/timeout -k 5 60 JOB {x}",
		"/usr/bin/env FOO=1 JOB {x}",
		"/usr/bin/env -i SHELL=/bin/sh JOB -c {x}",
		"/usr/bin/env -- JOB {x}",
		"/usr/bin/nice -n 10 /usr/bin/timeout 60 JOB {x}",
		"/usr/bin/flock -n /run/job.lock JOB {x}",
		"/bin/sh SCRIPT {x}",
		"/bin/sh -eu SCRIPT {x}",
		"/bin/bash -o pipefail SCRIPT -c {x}", // -c is an argument of the script
		"/bin/bash --noprofile --norc SCRIPT {x}",
		"/usr/bin/env python3 SCRIPT {x}",
		"/usr/bin/python3 SCRIPT {x}",
		"/usr/bin/python3 -u -W ignore SCRIPT {x}",
		"/usr/bin/python3 -m pkg {x}",
		"/usr/bin/python3 -um pkg {x}",
		"/usr/bin/perl -w SCRIPT {x}",
		"/usr/bin/perl -I/opt/lib SCRIPT {x}",
		"/usr/bin/perl -MTime::HiRes SCRIPT {x}",
		"/usr/bin/perl -I DIR SCRIPT {x}",
	} {
		t.Run(line, func(t *testing.T) {
			line = strings.NewReplacer("/usr/bin/", bin, "/bin/", bin, "JOB", job, "SCRIPT", script, "DIR", filepath.Dir(job)).Replace(line)
			words := strings.Fields(line)
			if _, problems := compile(command(words...), params(words)...); len(problems) > 0 {
				t.Errorf("refused: %v", problems)
			}
		})
	}
}

func TestCommand_ArgumentAsCode(t *testing.T) {
	bin, script := system(t), file(t, "job.sh", 0o755)
	sh, perl := link(t, bin+"sh", "harmless"), link(t, bin+"perl", "tool")
	for line, at := range map[string]string{
		"/bin/sh -c {x}":                             "1",
		"/bin/sh -c date":                            "1", // no value of a sender, but a shell
		"/bin/sh -c{x}":                              "1",
		"/bin/sh -ec date":                           "1",
		"/bin/bash -lc date":                         "1",
		"/bin/bash +xc date":                         "1",
		"/bin/bash -o pipefail -c date":              "3",
		"/bin/bash -O extglob -c date":               "3",
		"/bin/bash --rcfile SCRIPT -c date":          "3",
		"/bin/bash --init-file SCRIPT -c date":       "3",
		"/bin/bash -s":                               "1",
		"/bin/bash -":                                "1",
		"/bin/bash /dev/stdin":                       "1",
		"/bin/bash /proc/self/fd/0":                  "1",
		"/bin/bash":                                  "0",
		"/bin/bash job.sh":                           "0",
		"/bin/bash {x}":                              "1",
		"/bin/bash -e {x}":                           "2",
		"/bin/bash --rcfile={x} SCRIPT":              "1",
		"LINKEDSH -c date":                           "1",
		"LINKEDPERL -ne print":                       "1",
		"/usr/bin/perl -e 1":                         "1",
		"/usr/bin/perl -0777ne 1":                    "1",
		"/usr/bin/perl -I /opt -E 1":                 "3",
		"/usr/bin/python3 -c 1":                      "1",
		"/usr/bin/python3 -Ic 1":                     "1",
		"/usr/bin/python3 -W ignore -c 1":            "3",
		"/usr/bin/python3 -m {x}":                    "2",
		"/usr/bin/python3 {x}":                       "1",
		"/usr/bin/env bash -c date":                  "2",
		"/usr/bin/env SHELL=/bin/bash bash -c {x}":   "3",
		"/usr/bin/env SHELL=bash bash -c {x}":        "3",
		"/usr/bin/env -u sh bash -c {x}":             "4",
		"/usr/bin/env LINKEDSH -c {x}":               "2",
		"/usr/bin/env node --eval=1":                 "2",
		"/usr/bin/env node -pe 1":                    "2",
		"/usr/bin/env ruby -ne 1":                    "2",
		"/usr/bin/env php -r 1":                      "2",
		"/usr/bin/env python3.13 -c 1":               "2",
		"/usr/bin/env pwsh -EncodedCommand AAAA":     "2",
		"/usr/bin/env busybox sh -c {x}":             "3",
		"/usr/bin/env -S{x} /bin/echo":               "1",
		"/usr/bin/env -iSbash\\_-c /bin/echo":        "1",
		"/usr/bin/env --split-string=sh /bin/echo":   "1",
		"/usr/bin/env LD_PRELOAD={x} /bin/echo":      "1",
		"/usr/bin/env {x} /bin/echo":                 "1",
		"/usr/bin/env -- {x}":                        "2",
		"/usr/bin/env job --x={x}":                   "2",
		"/usr/bin/env job":                           "0",
		"/usr/bin/timeout {x} /bin/echo":             "1",
		"/usr/bin/timeout 60 {x}":                    "2",
		"/usr/bin/timeout 60 /bin/sh -c {x}":         "3",
		"/usr/bin/nice /usr/bin/env sh -c {x}":       "3",
		"/usr/bin/flock /run/job.lock -c date":       "2",
		"/usr/bin/xargs /bin/echo":                   "0",
		"/usr/bin/awk {x}":                           "1",
		"/bin/sed s/a/{x}/":                          "1",
		"/usr/bin/script -c date":                    "1",
		"/bin/su app -c date":                        "2",
		"/usr/bin/watch /bin/echo {x}":               "2",
		"/bin/echo exec pod -- sh -c {x}":            "5", // as kubectl gets it
		"/usr/bin/find /var -exec /bin/sh -c 1 ;":    "4",
		"/bin/echo --{x}":                            "1",
		"/bin/echo -{x}":                             "1",
		"/bin/echo --no-{x}":                         "1",
		"/bin/{x}":                                   "0",
		"{x}":                                        "0",
		"echo":                                       "0",
		"./echo":                                     "0",
		"/usr/bin/env /usr/bin/env /bin/sh -c {x} y": "3",
	} {
		t.Run(line, func(t *testing.T) {
			line = strings.NewReplacer("/usr/bin/", bin, "/bin/", bin, "LINKEDSH", sh, "LINKEDPERL", perl, "SCRIPT", script).Replace(line)
			words := strings.Fields(line)
			_, problems := compile(command(words...), params(words)...)
			for _, p := range problems {
				if strings.Join(p.Path, ".") == "h.command."+at {
					return
				}
			}
			t.Errorf("want a problem at command.%s, got %v", at, problems)
		})
	}
}

func TestCommand_SwappableProgram(t *testing.T) {
	refused := func(program, words string) {
		t.Helper()
		_, problems := compile(command(program))
		refuse(t, problems, "command.0", words)
	}
	refused(file(t, "group", 0o775), "chmod go-w")
	refused(file(t, "world", 0o757), "chmod go-w")
	refused(file(t, "data", 0o644), "not executable")
	refused(filepath.Join(t.TempDir(), "missing"), "does not exist")
	refused(link(t, file(t, "group", 0o775), "link"), "chmod go-w")
	refused(link(t, "/nowhere", "dangling"), "does not exist")
	refused(folder(t, 0o755), "is not a regular file")

	job := file(t, "job", 0o755)
	if _, problems := compile(command(link(t, job, "link"))); len(problems) > 0 {
		t.Errorf("a link to a good program is refused: %v", problems)
	}
	deep := filepath.Join(filepath.Dir(job), "a", "b", "job")
	if err := os.MkdirAll(filepath.Dir(deep), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(job, deep); err != nil {
		t.Fatal(err)
	}
	top := filepath.Dir(job)
	for _, mode := range []os.FileMode{0o775, 0o757} {
		if err := os.Chmod(top, mode); err != nil {
			t.Fatal(err)
		}
		refused(deep, "the folder "+top+" may be written")
		refused(link(t, deep, "link"), "the folder "+top+" may be written")
	}
	if err := os.Chmod(top, 0o777|fs.ModeSticky); err != nil {
		t.Fatal(err)
	}
	if _, problems := compile(command(deep)); len(problems) > 0 {
		t.Errorf("below a sticky folder it is refused: %v", problems)
	}
}

// TestCommand_ForeignOwner: the owner of a file or a folder may change it in spite of its mode, and the owner of a
// link may change its target.
func TestCommand_ForeignOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		testenv.Skip(t, "whose programs are refused, because only root may give files away")
	}
	const another = 65534
	give := func(name string) string {
		t.Helper()
		if err := os.Lchown(name, another, -1); err != nil {
			t.Fatal(err)
		}
		return name
	}
	refused := func(what string) {
		t.Helper()
		_, problems := compile(command(what))
		refuse(t, problems, "command.0", "belongs to another user than root and 0")
	}
	refused(give(file(t, "job", 0o755)))

	job := file(t, "job", 0o755)
	give(filepath.Dir(job))
	refused(job)
	refused(link(t, job, "link"))
	_, problems := compile(command(system(t)+"sh", job))
	refuse(t, problems, "command.1", filepath.Dir(job)+" belongs to another user")

	// In a sticky folder, other users cannot rename it, but it must not belong to them either.
	sticky := folder(t, 0o777|fs.ModeSticky)
	mine := filepath.Join(sticky, "job")
	if err := os.Symlink(file(t, "job", 0o755), mine); err != nil {
		t.Fatal(err)
	}
	if _, problems := compile(command(mine)); len(problems) > 0 {
		t.Errorf("our own link in a sticky folder is refused: %v", problems)
	}
	refused(give(mine))
}

func TestCommand_WrappedProgram(t *testing.T) {
	bin := system(t)
	_, problems := compile(command(bin+"env", file(t, "job", 0o775)))
	refuse(t, problems, "command.1", "chmod go-w")
	_, problems = compile(command(bin+"sh", "-e", file(t, "job.sh", 0o666)))
	refuse(t, problems, "command.2", "chmod go-w")
	_, problems = compile(command(bin+"sh", "/nowhere/job.sh"))
	refuse(t, problems, "command.1", "does not exist")
}

func TestCommand_NUL(t *testing.T) {
	_, problems := compile(command("/bin/echo", "a\x00b"))
	refuse(t, problems, "command.1", "NUL")
	_, problems = compile(command())
	refuse(t, problems, "command", "is missing")
}
