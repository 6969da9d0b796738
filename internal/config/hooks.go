package config

import (
	"log/slog"

	"sallyport/internal/diag"
	"sallyport/internal/logging"
	"sallyport/runner/hook"
)

// LoadHooks reads the file called name and compiles its hooks and the settings of the log, and nothing else: no key, no
// certificate and no secret that the file names is opened, because the process that starts commands has no use for
// them. The hooks are nil if any of the diagnostics is more than a warning; the shape of the whole file counts.
func LoadHooks(name string) (map[string]*hook.Hook, logging.Settings, []Diagnostic) {
	var p diag.List
	f, r := openFile(name, &p)
	if f == nil {
		return nil, logging.Settings{}, r.sortedDiagnostics()
	}
	hooks, settings := f.compileHooks(p.At("hooks")), f.Log.compile(p.At("log"))
	r.addProblems(p.All())
	if r.hasErrors() {
		return nil, logging.Settings{}, r.sortedDiagnostics()
	}
	return hooks, settings, r.sortedDiagnostics()
}

// compile returns the settings of the log.
func (l Log) compile(p *diag.List) (s logging.Settings) {
	levels := map[string]slog.Level{
		"": slog.LevelInfo, "debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn,
		"error": slog.LevelError,
	}
	level, ok := levels[l.Level]
	if !ok {
		p.At("level").Errorf("%q is not debug, info, warn or error", l.Level)
	}
	s = logging.Settings{Level: level, Format: logging.Format(l.Format)}
	switch s.Format {
	case "", logging.JSON, logging.Text, logging.Terminal:
	default:
		p.At("format").Errorf("%q is not json, text or terminal", l.Format)
	}
	return s
}
