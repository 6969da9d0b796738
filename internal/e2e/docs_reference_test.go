package e2e_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sallyport/internal/client"
	"sallyport/runner"
)

// TestDocs_ProblemsMatchCode compares the kinds of problems in docs/api.md with
// those of the refusals in package handlers.
func TestDocs_ProblemsMatchCode(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("handlers/*.go")
	mustSucceed(t, err)
	named := map[string]string{}
	for _, file := range append(files, "internal/audit/refusals.go") {
		for _, m := range regexp.MustCompile(`(?m)^(?:const |\t)(\w+) += "([^"]+)"`).FindAllStringSubmatch(readDoc(t, file), -1) {
			named[m[1]] = m[2]
		}
	}
	var code []string
	for _, file := range files {
		if !strings.HasSuffix(file, "_test.go") {
			code = append(code, refusalKinds(t, file, named)...)
		}
	}
	slices.Sort(code)
	code = slices.Compact(code)
	section := cutBetween(t, readDoc(t, "docs/api.md"), "\n## Problems\n", "\n`request_id`")
	if docs := findMatches("(?m)^\\| `([^`]+)` \\|", section); !slices.Equal(docs, code) {
		t.Errorf("docs/api.md has %q, and there are %q", docs, code)
	}
}

// refusalKinds returns the kinds of the refusals that a file makes. A kind is
// a literal, or a constant by its name.
func refusalKinds(t *testing.T, file string, named map[string]string) (kinds []string) {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
	mustSucceed(t, err)
	ast.Inspect(parsed, func(n ast.Node) bool {
		lit, ok := n.(*ast.CompositeLit)
		if name, isName := "", false; ok {
			if ident, is := lit.Type.(*ast.Ident); is {
				name, isName = ident.Name, true
			}
			ok = isName && name == "refusal"
		}
		if !ok {
			return true
		}
		for _, element := range lit.Elts {
			pair, isPair := element.(*ast.KeyValueExpr)
			if !isPair || pair.Key.(*ast.Ident).Name != "kind" {
				continue
			}
			switch value := pair.Value.(type) {
			case *ast.BasicLit:
				kinds = append(kinds, strings.Trim(value.Value, `"`))
			case *ast.Ident:
				kinds = append(kinds, named[value.Name])
			case *ast.SelectorExpr:
				kinds = append(kinds, named[value.Sel.Name])
			}
		}
		return true
	})
	return kinds
}

// TestDocs_RunMembersMatchCode compares the members of a run in docs/api.md with
// those of runner.Run.
func TestDocs_RunMembersMatchCode(t *testing.T) {
	t.Parallel()
	var code []string
	for _, f := range reflect.VisibleFields(reflect.TypeFor[runner.Run]()) {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" {
			code = append(code, name)
		}
	}
	slices.Sort(code)
	section := cutBetween(t, readDoc(t, "docs/api.md"), "\n| member | meaning |\n", "\n\n")
	var cells []string
	for line := range strings.Lines(section) {
		cells = append(cells, strings.Split(line, "|")[1])
	}
	if docs := findMatches("`([^`]+)`", strings.Join(cells, " ")); !slices.Equal(docs, code) {
		t.Errorf("docs/api.md has %q, and a run has %q", docs, code)
	}
}

// TestDocs_FlagsMatchHelp compares the commands and flags in docs/cli.md with
// those that the program prints.
func TestDocs_FlagsMatchHelp(t *testing.T) {
	t.Parallel()
	help := func(args ...string) string {
		out, err := program(t, t.TempDir(), append(args, "--help")...).Output()
		mustSucceed(t, err)
		return string(out)
	}
	page := readDoc(t, "docs/cli.md")
	commands := findMatches(`(?m)^  ([a-z]+(?: [a-z]+)?) *(?:--|\[|<|$)`, cutBetween(t, help(), "\nCommands:\n", "\nRun \"sallyport"))
	if len(commands) < 10 {
		t.Fatalf("the help has only %q", commands)
	}
	table := strings.ReplaceAll(cutBetween(t, page, "\n| command | what it does |\n", "\n\n"), "`", "")
	code := []string{"--help"}
	for _, command := range commands {
		for word := range strings.FieldsSeq(command) {
			if !regexp.MustCompile(`\b` + word + `\b`).MatchString(table) {
				t.Errorf("docs/cli.md does not list the command %s", command)
			}
		}
		code = append(code, findMatches(`(?m)^ +(?:-\w, +)?(--[a-z-]+)`, help(strings.Fields(command)...))...)
	}
	slices.Sort(code)
	code = slices.Compact(code)
	if docs := findMatches("(--[a-z][a-z-]+)", page); !slices.Equal(docs, code) {
		t.Errorf("docs/cli.md has  %q\nthe commands have %q", docs, code)
	}
}

// TestTutorial_Works follows docs/tutorial.md: it writes the files that the page
// shows, and sends the deliveries that the page sends.
func TestTutorial_Works(t *testing.T) {
	t.Parallel()
	page := readDoc(t, "docs/tutorial.md")
	dir := t.TempDir()
	script := "#!/bin/sh\n" + cutBetween(t, page, "```sh\n#!/bin/sh\n", "```")
	mustSucceed(t, os.WriteFile(filepath.Join(dir, "deploy"), []byte(strings.Replace(script, "sleep 20\n", "", 1)), 0o600))
	mustSucceed(t, os.Chmod(filepath.Join(dir, "deploy"), 0o700))
	mustSucceed(t, os.Mkdir(filepath.Join(dir, "secrets"), 0o700))
	config := strings.NewReplacer("/tmp/gate", dir, "localhost:8443", "localhost:0").Replace(cutBetween(t, page, "```yaml\n", "```"))
	mustSucceed(t, os.WriteFile(filepath.Join(dir, "sallyport.yaml"), []byte(config), 0o600))
	for _, line := range []string{"certs dev", "keys new github --id tutorial --out secrets/github", "check"} {
		if !strings.Contains(page, "\n$ sallyport "+line+"\n") {
			t.Errorf("the tutorial does not run %s", line)
		}
		out, err := program(t, dir, strings.Fields(line)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
		checkQuoted(t, page, strings.NewReplacer(dir, "/tmp/gate", "localhost:0", "localhost:8443").Replace(string(out)))
	}
	url := startListening(t, dir, program(t, dir, "serve"))
	call := func(args ...string) (output string, code int) {
		cmd := program(t, dir, append([]string{"call", "--ca", "certs/ca.pem"}, append(args, url+"/hooks/deploy")...)...)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	signed := []string{"--scheme", "github", "--key-file", "secrets/github", "--wait", "--json", "-d"}
	first, code := call(append(signed, `{"after": "c0ffee1"}`)...)
	run := findMatches(`"id": "([^"]+)"`, first)
	if code != 0 || len(run) != 1 {
		t.Fatalf("the delivery: exit code %d\n%s", code, first)
	}
	again, code := call(append(signed, `{"after": "c0ffee1"}`)...)
	if code != client.ExitReplayed || !strings.Contains(again, run[0]) {
		t.Errorf("the same delivery again: exit code %d\n%s", code, again)
	}
	message, _, _ := strings.Cut(again, "{")
	checkQuoted(t, page, message)
	refused, code := call(append(signed, `{"after": "--help"}`)...)
	if code != client.ExitMalformed {
		t.Errorf("a value that is not allowed: exit code %d\n%s", code, refused)
	}
	checkQuoted(t, page, refused)
	if out, code := call("-d", `{"after": "c0ffee3"}`); code != client.ExitRefused {
		t.Errorf("without a signature: exit code %d\n%s", code, out)
	}
	out, err := program(t, dir, "runs", "output", "--state-dir", "state", run[0]).Output()
	mustSucceed(t, err)
	if want := "deploying c0ffee1\ndone: run " + run[0] + "\n"; string(out) != want {
		t.Errorf("the output is %q, not %q", out, want)
	}
	verified, err := program(t, dir, "audit", "verify", "--state-dir", "state").Output()
	mustSucceed(t, err)
	checkQuoted(t, page, string(verified))
	// The page makes this mistake after it has added a second caller.
	config = strings.Replace(config, "callers: [github]", "callers: [github, etll]", 1)
	mustSucceed(t, os.WriteFile(filepath.Join(dir, "sallyport.yaml"), []byte(config), 0o600))
	mistake, err := program(t, dir, "check").CombinedOutput()
	if err == nil {
		t.Error("a caller that is not configured was accepted")
	}
	checkQuoted(t, page, string(mistake))
}

// varying matches what differs between two runs of a command: ids, times and counts.
var varying = regexp.MustCompile(`[0-9A-Z]{26}|[0-9a-f]{8}-[0-9a-f-]{27}|\d+`)

// checkQuoted checks that a page quotes each line of an output, except for what varies. The page may break lines.
func checkQuoted(t *testing.T, page, output string) {
	t.Helper()
	simplify := func(text string) string {
		return strings.Join(strings.Fields(varying.ReplaceAllString(text, "#")), " ")
	}
	page = simplify(page)
	for line := range strings.Lines(output) {
		if line = simplify(line); !strings.Contains(page, line) {
			t.Errorf("the page does not quote %q", line)
		}
	}
}
