package manual_test

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"sallyport/internal/manual"
	"sallyport/internal/testenv"
)

type boat struct {
	Sail struct {
		To    string `arg:"" help:"Harbour's name."`
		Speed string `short:"s" enum:"fast,slow" default:"slow" help:"How fast: 'fast' or [slow]."`
		Chart string `help:"File with the .chart\\s."`
		Dry   bool   `help:"Only print."`
	} `cmd:"" help:"Sail to a harbour."`
	Crew struct {
		List struct{} `cmd:"" help:"List the crew."`
		Sign struct {
			Rank string `arg:"" enum:"mate,cook" help:"Rank."`
		} `cmd:"" help:"Sign a member on."`
	} `cmd:"" help:"The crew."`
	Sink struct{} `cmd:"" hidden:"" help:"Sink."`
}

// render returns what one of the functions prints for the model.
func render(t *testing.T, print func(io.Writer, *kong.Application) error) string {
	t.Helper()
	parser, err := kong.New(new(boat), kong.Name("boat"), kong.Description("A boat.\n\nIt floats: 'well'."))
	mustSucceed(t, err)
	var out bytes.Buffer
	mustSucceed(t, print(&out, parser.Model))
	return out.String()
}

func mustSucceed(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// completion is a command line, of which the last word is completed, and what a shell offers.
type completion struct {
	line string
	want string // sorted; "FILES" stands for names of files
}

// completions are the same for each shell.
func completions() []completion {
	return []completion{
		{"boat ", "crew sail"},
		{"boat s", "sail"},
		{"boat crew ", "list sign"},
		{"boat crew sign ", "cook mate"},
		{"boat crew sign m", "mate"},
		{"boat sail --sp", "--speed"},
		{"boat sail --speed ", "fast slow"},
		{"boat sail -s f", "fast"},
		{"boat sail --dry --ch", "--chart"},
		{"boat sail --chart ", "FILES"},
		{"boat sail --dry ", "FILES"},
		{"boat sink --", "--help"}, // hidden: as if it were no command
	}
}

// TestCompletions_Shells completes command lines in each shell, by the script that it is given.
func TestCompletions_Shells(t *testing.T) {
	for shell, c := range map[string]struct {
		print  func(io.Writer, *kong.Application) error
		driver string // prints what is offered for the words of $@, or FILES
	}{
		"bash": {manual.Bash, `source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _boat
[[ ${COMPREPLY[*]} ]] && printf '%s\n' "${COMPREPLY[@]}" || echo FILES`},
		"zsh": {manual.Zsh, `script=$1; shift; words=("$@"); CURRENT=$#; PREFIX=$words[-1]
_files() { print FILES }
compadd() { shift; (($#)) || return 1; print -rl -- ${(M)@:#$PREFIX*} }
_describe() { all=(${(P)2%%:*}); print -rl -- ${(M)all:#$PREFIX*} }
source "$script"`},
		"fish": {manual.Fish, `source $argv[1]
set offered (complete -C (string join ' ' -- $argv[2..]) | string replace -r '\t.*' '')
set known (string match -v -- '*/*' $offered)
if test -n "$known"; printf '%s\n' $known; else; echo FILES; end`},
	} {
		t.Run(shell, func(t *testing.T) {
			testenv.Need(t, shell)
			script := filepath.Join(t.TempDir(), "script")
			mustSucceed(t, os.WriteFile(script, []byte(render(t, c.print)), 0o600))
			for _, row := range completions() {
				args := []string{"-c", c.driver}
				if shell != "fish" {
					args = append(args, shell)
				}
				cmd := exec.CommandContext(t.Context(), shell, append(append(args, script), strings.Split(row.line, " ")...)...)
				cmd.Dir = filepath.Dir(script)
				cmd.Env = append(os.Environ(), "HOME="+cmd.Dir)
				cmd.Stderr = os.Stderr
				out, err := cmd.Output()
				if err != nil {
					t.Errorf("%q: %v", row.line, err)
				}
				offered := slices.DeleteFunc(strings.Fields(string(out)), func(word string) bool {
					return word == "script" || word == "-h" || word == "--help" && row.want != "--help"
				})
				if len(offered) == 0 && row.want == "FILES" {
					offered = []string{"FILES"}
				}
				slices.Sort(offered)
				if got := strings.Join(offered, " "); got != row.want {
					t.Errorf("%q: offers %q, want %q", row.line, got, row.want)
				}
			}
		})
	}
}

// TestPage_Complete: the man page is without faults, and has every command that is not hidden, with its flags and
// arguments.
func TestPage_Complete(t *testing.T) {
	testenv.Need(t, "mandoc")
	page := render(t, func(w io.Writer, program *kong.Application) error {
		return manual.Page(w, program, "v1", time.Unix(1_700_000_000, 0))
	})
	for _, args := range [][]string{{"-T", "lint", "-W", "warning"}, {"-T", "ascii"}} {
		cmd := exec.CommandContext(t.Context(), "mandoc", args...)
		cmd.Stdin = strings.NewReader(page)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if args[1] == "lint" {
			continue
		}
		text := strings.Join(strings.Fields(regexp.MustCompile(".\x08").ReplaceAllString(string(out), "")), " ")
		for _, want := range []string{
			"boat - a boat", "It floats: 'well'.", "boat sail <to>", "Harbour's name.", "--speed, -s", `File with the .chart\s.`,
			"boat crew list", "boat crew sign <rank>", "2023-11-14", "boat v1",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("the page has no %q:\n%s", want, text)
			}
		}
		if strings.Contains(text, "Sink") {
			t.Error("the page has a hidden command")
		}
	}
}
