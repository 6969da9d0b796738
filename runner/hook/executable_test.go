package hook_test

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"sallyport/runner/hook"
)

// executable creates an executable file with the given content.
func executable(t *testing.T, content string) string {
	t.Helper()
	name := file(t, "job", 0o755)
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// dynamic is the smallest ELF file that needs a dynamic loader.
func dynamic(t *testing.T, loader string) string {
	t.Helper()
	const header, part = 64, 56
	var b bytes.Buffer
	for _, v := range []any{
		elf.Header64{
			Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
			Type:  uint16(elf.ET_DYN), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
			Phoff: header, Ehsize: header, Phentsize: part, Phnum: 1,
		},
		elf.Prog64{Type: uint32(elf.PT_INTERP), Off: header + part, Filesz: uint64(len(loader)) + 1},
		append([]byte(loader), 0),
	} {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

func TestExecutable_CannotStart(t *testing.T) {
	other := file(t, "data", 0o644)
	circle := file(t, "circle", 0o755)
	if err := os.WriteFile(circle, []byte("#!"+circle+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for content, want := range map[string]string{
		"":                              "is empty",
		"echo hello\n":                  "write #!/bin/sh, or another, as its first line",
		"\n#!/bin/sh\n":                 "write #!/bin/sh, or another, as its first line",
		"\xef\xbb\xbf#!/bin/sh\n":       "begins with a byte order mark",
		"#!/bin/sh\r\necho hello\r\n":   "ends with CR LF",
		"#!/bin/sh -e\r\n":              "ends with CR LF",
		"#!/usr/bin/env sh\r\n":         "ends with CR LF",
		"#!\n":                          "it needs an absolute path",
		"#!sh\n":                        "it needs an absolute path",
		"#! bin/sh -e\n":                "it needs an absolute path",
		"#!/nowhere/bin/bash\n":         "the interpreter /nowhere/bin/bash of",
		"#!/nowhere/bin/bash -e\n":      "the interpreter /nowhere/bin/bash of",
		"#! \t/nowhere/bin/bash":        "the interpreter /nowhere/bin/bash of",
		"#!" + other + "\n":             "is not executable",
		"#!" + filepath.Dir(other):      "is not a regular file",
		"#!" + circle + "\n":            "longer chain of interpreters",
		"#!/usr/bin/env no-such-name\n": "the PATH of the command has no such program",
		"#!/usr/bin/env sh -e\n":        `is run by "sh -e"`,
		dynamic(t, "/nowhere/ld.so"):    "the loader /nowhere/ld.so of",
	} {
		if runtime.GOOS != "linux" && (strings.Contains(want, "as its first line") || strings.Contains(content, "env")) {
			continue // other systems have other executable formats
		}
		_, problems := compile(command(executable(t, content)))
		refuse(t, problems, "command.0", want)
	}
}

func TestExecutable_Starts(t *testing.T) {
	for _, content := range []string{
		"#!/bin/sh", "#!/bin/sh\n", "#! /bin/sh -e\n", "#!/usr/bin/env sh\n", "#!/usr/bin/env -S sh -e\n", "#!/bin/sh\necho hello\r\n",
		dynamic(t, "/bin/sh"), "\x7fELF of a form that only the kernel knows",
	} {
		if _, problems := compile(command(executable(t, content))); len(problems) > 0 {
			t.Errorf("%q is refused: %v", content, problems)
		}
	}
	bin := executable(t, "#!/bin/sh\n")
	s := command(executable(t, "#!/usr/bin/env job\n"))
	s.Env = map[string]string{"PATH": "/nowhere:" + filepath.Dir(bin)}
	if _, problems := compile(s); len(problems) > 0 {
		t.Errorf("a program in the PATH of the hook is not found: %v", problems)
	}
}

// TestExecutable_WhereItIsRead: a program that a wrapper executes is checked, and a file that an interpreter only
// reads is not.
func TestExecutable_WhereItIsRead(t *testing.T) {
	bin, broken := system(t), executable(t, "echo hello\n")
	if _, problems := compile(command(bin+"sh", broken)); len(problems) > 0 {
		t.Errorf("a script that its interpreter reads needs no first line: %v", problems)
	}
	if runtime.GOOS == "linux" {
		_, problems := compile(command(bin+"timeout", "60", broken))
		refuse(t, problems, "command.2", "as its first line")
	}
}

func TestDefault_Unusable(t *testing.T) {
	bad := func(words []string, path string, defaults ...string) {
		t.Helper()
		_, problems := compile(withDefaults(words, defaults...))
		if path == "" && len(problems) > 0 {
			t.Errorf("%q with %q is refused: %v", words, defaults, problems)
		}
		if path != "" {
			refuse(t, problems, path, "can never be used")
		}
	}
	bad([]string{"/bin/echo", "{x}"}, "params.x.default", "-")
	bad([]string{"/bin/echo", "{x}"}, "params.x.default", "-5")
	bad([]string{"/bin/echo", "{x}{y}"}, "params.y.default", "", "-y")
	bad([]string{"/bin/echo", "{x}{y}"}, "", "a", "-y")
	bad([]string{"/bin/echo", "--x={x}"}, "", "-")
	bad([]string{"/bin/echo", "--", "{x}"}, "", "-")
	bad([]string{"/bin/echo", "--", "word", "{x}"}, "params.x.default", "-")
	bad([]string{"/bin/echo", "{x}"}, "", "a")
}

// withDefaults returns a command whose parameters x and y take any text.
func withDefaults(words []string, defaults ...string) hook.Spec {
	s := command(words...)
	s.Params = map[string]hook.ParamSpec{}
	for i, value := range defaults {
		p := textParam("query", "q")
		p.Default = &value
		s.Params[string(rune('x'+i))] = p
	}
	return s
}

func TestUmask_Forms(t *testing.T) {
	for text, want := range map[string]hook.Umask{"022": 0o022, "0027": 0o027, "077": 0o077, "000": 0} {
		var u hook.Umask
		if err := u.UnmarshalText([]byte(text)); err != nil || u != want {
			t.Errorf("%s: %s, %v", text, u, err)
		}
	}
	for _, text := range []string{"", "0", "22", "18", "0x22", "0o22", "1777", "-22", "u=rwx", "700", "0122", "77777777777"} {
		if err := new(hook.Umask).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
	if h := newHook(t, command("/bin/echo")); h.Umask != 0o022 {
		t.Errorf("without a umask it is %03o", h.Umask)
	}
}
