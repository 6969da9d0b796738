package config

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"sallyport/internal/problem"
	"sallyport/runner"
)

// LoadHooks reads the hooks of the file called name and nothing that the file
// names besides: no key, no certificate. It is for the process that starts
// commands, which has no business with secrets.
func LoadHooks(name string) (map[string]*runner.Hook, error) {
	r := &report{file: name, places: map[string]place{}, broken: map[string]bool{}}
	data, err := read(name)
	if err != nil {
		return nil, err
	}
	var f File
	if !decode(data, &f, r) || r.bad() {
		return nil, errors.New(r.sorted()[0].String())
	}
	var p problem.List
	hooks := runner.Compile(f.Hooks, slices.Collect(maps.Keys(f.Callers)), p.At("hooks"))
	r.resolve(p.All())
	if r.bad() {
		return nil, fmt.Errorf("the hooks are refused: %s", r.sorted()[0])
	}
	return hooks, nil
}
