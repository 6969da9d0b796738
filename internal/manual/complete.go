package manual

import (
	"fmt"
	"io"
	"strings"

	"github.com/alecthomas/kong"
)

// Bash prints the completion for bash: a script that defines a function and registers it.
func Bash(w io.Writer, program *kong.Application) error {
	s := newScript(program)
	s.line("# bash completion of %s, made from its command line", s.name)
	s.line("_%s() {", s.name)
	s.line("  local word at= cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}")
	s.line(`  for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do`)
	s.line(`    case "$at $word" in %s) at="${at:+$at }$word" ;; esac`, s.steps("|"))
	s.line("  done")
	s.line(`  case "$at $prev" in`)
	s.eachValue(func(pattern string, values []string) {
		s.line(`    %s) COMPREPLY=($(compgen -W "%s" -- "$cur")); return ;;`, pattern, strings.Join(values, " "))
	})
	s.line("  esac")
	s.line("  local names= flags=")
	s.line(`  case "$at" in`)
	for _, c := range s.commands {
		s.line(`    "%s") names="%s" flags="%s" ;;`, c.path, strings.Join(c.names(), " "), strings.Join(c.spellings(), " "))
	}
	s.line("  esac")
	s.line(`  [[ $cur == -* ]] && names=$flags`)
	s.line(`  COMPREPLY=($(compgen -W "$names" -- "$cur"))`)
	s.line("}")
	s.line("complete -o default -F _%[1]s %[1]s", s.name)
	return s.print(w)
}

// Zsh prints the completion for zsh: a file named _program for a folder of its fpath.
func Zsh(w io.Writer, program *kong.Application) error {
	s := newScript(program)
	s.line("#compdef %s", s.name)
	s.line("# zsh completion of %s, made from its command line", s.name)
	s.line("local word at=")
	s.line("local -a found")
	s.line(`for word in "${(@)words[2,CURRENT-1]}"; do`)
	s.line(`  case "$at $word" in %s) at="${at:+$at }$word" ;; esac`, s.steps("|"))
	s.line("done")
	s.line(`case "$at $words[CURRENT-1]" in`)
	s.eachValue(func(pattern string, values []string) {
		s.line("  %s) compadd -- %s || _files; return ;;", pattern, strings.Join(values, " "))
	})
	s.line("esac")
	s.line(`case "$at" in`)
	for _, c := range s.commands {
		s.line(`  "%s") found=(`, c.path)
		for _, node := range c.below {
			s.line("    '%s:%s'", node.Name, plain(node.Help))
		}
		for _, value := range c.arguments {
			s.line("    '%s'", value)
		}
		for _, f := range c.flags {
			s.line("    '--%s:%s'", f.Name, plain(f.Help))
		}
		s.line("  ) ;;")
	}
	s.line("esac")
	s.line(`[[ $PREFIX != -* && -z ${found[(r)[^-]*]} ]] && _files && return`)
	s.line(`_describe %s found || _files`, s.name)
	return s.print(w)
}

// Fish prints the completion for fish.
func Fish(w io.Writer, program *kong.Application) error {
	s := newScript(program)
	s.line("# fish completion of %s, made from its command line", s.name)
	s.line("function __%s_at\n  set -l at", s.name)
	s.line("  for word in (commandline -opc)[2..]")
	s.line(`    switch "$at $word"`)
	s.line("      case %s", strings.ReplaceAll(s.steps(" "), `"`, "'"))
	s.line(`        set at (string trim -- "$at $word")`)
	s.line("    end\n  end")
	s.line("  test \"$at\" = \"$argv\"\nend")
	for _, c := range s.commands {
		at := fmt.Sprintf("complete -c %[1]s -n '__%[1]s_at %[2]s'", s.name, c.path)
		for _, node := range c.below {
			s.line("%s -f -a %s -d '%s'", at, node.Name, plain(node.Help))
		}
		for _, value := range c.arguments {
			s.line("%s -f -a %s", at, value)
		}
		for _, f := range c.flags {
			options := "-l " + f.Name
			if f.Short != 0 {
				options += " -s " + string(f.Short)
			}
			if values := listValues(f.Value); len(values) > 0 {
				options += " -x -a '" + strings.Join(values, " ") + "'"
			} else if takesValue(f) {
				options += " -r -F"
			}
			s.line("%s %s -d '%s'", at, options, plain(f.Help))
		}
	}
	return s.print(w)
}

// script is a completion that is being written.
type script struct {
	name     string
	commands []command
	text     strings.Builder
}

func newScript(program *kong.Application) *script {
	return &script{name: program.Name, commands: listCommands(program.Node)}
}

func (s *script) line(format string, args ...any) { _, _ = fmt.Fprintf(&s.text, format+"\n", args...) }

func (s *script) print(w io.Writer) error {
	_, err := io.WriteString(w, s.text.String())
	return err
}

// steps returns, in quotes, each command that may follow another: " runs", "runs list".
func (s *script) steps(separator string) string {
	var all []string
	for _, c := range s.commands {
		for _, node := range c.below {
			all = append(all, `"`+c.path+" "+node.Name+`"`)
		}
	}
	return strings.Join(all, separator)
}

// eachValue calls add for the flags that take a value, with the values of those that have a list.
func (s *script) eachValue(add func(pattern string, values []string)) {
	for _, c := range s.commands {
		var free []string
		for _, f := range c.flags {
			switch values := listValues(f.Value); {
			case len(values) > 0:
				add(c.pattern(f), values)
			case takesValue(f):
				free = append(free, c.pattern(f))
			}
		}
		if len(free) > 0 {
			add(strings.Join(free, "|"), nil)
		}
	}
}

// names returns the commands and arguments that may follow a command.
func (c *command) names() (all []string) {
	for _, node := range c.below {
		all = append(all, node.Name)
	}
	return append(all, c.arguments...)
}

// spellings returns the flags of a command.
func (c *command) spellings() (all []string) {
	for _, f := range c.flags {
		all = append(all, spellings(f)...)
	}
	return all
}

// pattern returns, in quotes, the spellings of a flag after its command.
func (c *command) pattern(f *kong.Flag) string {
	var all []string
	for _, written := range spellings(f) {
		all = append(all, `"`+c.path+" "+written+`"`)
	}
	return strings.Join(all, "|")
}
