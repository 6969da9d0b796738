package manual

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/alecthomas/kong"
)

// Page prints the man page of a program (man-pages(7)). The version and the date are in its margins; a zero date is
// left out.
func Page(w io.Writer, program *kong.Application, version string, date time.Time) error {
	p := &page{name: program.Name}
	day := ""
	if !date.IsZero() {
		day = date.UTC().Format(time.DateOnly)
	}
	about := paragraphs(program.Help)
	p.line(".TH %s 1 %q %q", strings.ToUpper(p.name), day, strings.TrimSpace(p.name+" "+version))
	p.section("NAME")
	first := strings.TrimSuffix(about[0], ".")
	p.line(`%s \- %s`, p.name, escape(strings.ToLower(first[:1])+first[1:]))
	p.section("SYNOPSIS")
	p.line(`.B %s`, p.name)
	p.line(`.I COMMAND`)
	p.line(`.RI [ FLAGS ]`)
	p.section("DESCRIPTION")
	for i, paragraph := range about {
		if i > 0 {
			p.line(".PP")
		}
		p.line("%s", escape(paragraph))
	}
	p.section("COMMANDS")
	for _, leaf := range program.Leaves(true) {
		p.addCommand(leaf)
	}
	p.section("FILES")
	p.line(".TP\n.I /etc/%[1]s/%[1]s.yaml\nThe configuration of the service, in a packaged installation.", p.name)
	p.line(".TP\n.I /var/lib/%[1]s\nIts state folder.", p.name)
	p.line(".TP\n.I /usr/share/doc/%[1]s\nThe whole documentation, and examples.", p.name)
	_, err := io.WriteString(w, p.text.String())
	return err
}

type page struct {
	name string
	text strings.Builder
}

func (p *page) line(format string, args ...any) { _, _ = fmt.Fprintf(&p.text, format+"\n", args...) }

func (p *page) section(title string) { p.line(".SH %s", title) }

func (p *page) addCommand(leaf *kong.Node) {
	p.line(".SS %s", escape(p.name+" "+pathOf(leaf)+argumentsOf(leaf)))
	p.line("%s", escape(leaf.Help))
	for _, argument := range leaf.Positional {
		p.line(".TP\n.I %s\n%s", escape(argument.Name), escape(argument.Help))
	}
	for _, flags := range leaf.AllFlags(true) {
		for _, f := range flags {
			p.addFlag(f)
		}
	}
}

func (p *page) addFlag(f *kong.Flag) {
	written := strings.Join(spellings(f), ", ")
	if !takesValue(f) {
		p.line(".TP\n.B %s\n%s", escape(written), escape(f.Help))
		return
	}
	p.line(".TP\n.BI %q %q\n%s", escape(written)+" ", escape(f.FormatPlaceHolder()), escape(f.Help))
}

// argumentsOf returns the arguments of a command as its usage shows them.
func argumentsOf(leaf *kong.Node) (text string) {
	for _, argument := range leaf.Positional {
		text += " " + argument.Summary()
	}
	return text
}

// escape makes text of what roff(7) would take for more than that.
func escape(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, `"`, `\(dq`, "'", `\(aq`, "\n", " ").Replace(text)
	if strings.HasPrefix(text, ".") {
		text = `\&` + text
	}
	return text
}
