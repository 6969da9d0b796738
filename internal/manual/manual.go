// Package manual makes the man page ([Page]) and the completions for shells ([Bash], [Zsh], [Fish]) of a program from
// the model of its command line, so they never differ from it.
//
// The completions are scripts that need nothing at run time but the shell. They complete commands, flags and the values
// of flags that have a list; other values are completed as file names.
package manual

import (
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// command is a command, or a group of commands, for a completion.
type command struct {
	path      string // "runs list"; empty for the program
	below     []*kong.Node
	flags     []*kong.Flag
	arguments []string // the values of arguments that have a list
}

// listCommands returns the program and all commands that are not hidden, parents first.
func listCommands(node *kong.Node) (all []command) {
	c := command{path: pathOf(node)}
	for _, argument := range node.Positional {
		c.arguments = append(c.arguments, listValues(argument)...)
	}
	for _, flags := range node.AllFlags(true) {
		c.flags = append(c.flags, flags...)
	}
	slices.SortStableFunc(c.flags, func(a, b *kong.Flag) int { return strings.Compare(a.Name, b.Name) })
	for _, child := range node.Children {
		if !child.Hidden && child.Type == kong.CommandNode {
			c.below = append(c.below, child)
		}
	}
	all = append(all, c)
	for _, child := range c.below {
		all = append(all, listCommands(child)...)
	}
	return all
}

// pathOf returns the names of a command and of the commands that it belongs to, without the program.
func pathOf(node *kong.Node) string {
	if node.Parent == nil {
		return ""
	}
	return strings.TrimSpace(pathOf(node.Parent) + " " + node.Name)
}

// spellings returns the flag as it is written: "--config", and "-c" if it has a short form.
func spellings(f *kong.Flag) []string {
	if f.Short == 0 {
		return []string{"--" + f.Name}
	}
	return []string{"--" + f.Name, "-" + string(f.Short)}
}

// takesValue reports whether a value follows the flag.
func takesValue(f *kong.Flag) bool { return !f.IsBool() && !f.IsCounter() }

// listValues returns the values of a flag or argument that has a list.
func listValues(v *kong.Value) []string {
	if v.Enum == "" {
		return nil
	}
	return v.EnumSlice()
}

// plain returns a text without what has a meaning in single quotes, or in the descriptions of zsh.
func plain(text string) string {
	return strings.NewReplacer("'", "", `\`, "", "\n", " ", ":", "").Replace(text)
}

// paragraphs returns the paragraphs of a text, each on one line.
func paragraphs(text string) (all []string) {
	for p := range strings.SplitSeq(text, "\n\n") {
		all = append(all, strings.Join(strings.Fields(p), " "))
	}
	return all
}
