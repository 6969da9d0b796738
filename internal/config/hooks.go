package config

import (
	"sallyport/internal/diag"
	"sallyport/runner/hook"
)

// LoadHooks reads the file called name and compiles its hooks and nothing else:
// no key, no certificate and no secret that the file names is opened, because
// the process that starts commands has no use for them. The hooks are nil if
// any of the diagnostics is more than a warning; the shape of the whole file
// counts.
func LoadHooks(name string) (map[string]*hook.Hook, []Diagnostic) {
	var p diag.List
	f, r := openFile(name, &p)
	if f == nil {
		return nil, r.sortedDiagnostics()
	}
	hooks := f.compileHooks(p.At("hooks"))
	r.addProblems(p.All())
	if r.hasErrors() {
		return nil, r.sortedDiagnostics()
	}
	return hooks, r.sortedDiagnostics()
}
