package config

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sallyport/internal/diag"
	"sallyport/internal/pathsafe"
	"sallyport/runner/hook"
)

// maxIncluded is the maximum number of included files. All files together may have maxFile bytes.
const maxIncluded = 1000

// includedFile is the content of a file that include names. It has no include of its own.
type includedFile struct {
	Callers map[string]*CallerSpec `yaml:"callers"`
	Hooks   map[string]*hook.Spec  `yaml:"hooks"`
}

// inclusion reads the files that the main file includes into it.
type inclusion struct {
	file   *File
	dir    string  // of the main file
	report *report // of the main file
	size   int     // of all files until now
	list   strings.Builder
	p      *diag.List
}

// readIncluded reads the files of each pattern, sorted by name, and adds their callers and hooks to the file. The
// digest of the report becomes that of the list of all files with their digests, in the form of sha256sum. size is that
// of the main file.
func (f *File) readIncluded(r *report, size int, p *diag.List) {
	if f.Include == nil {
		return
	}
	at := p.At("include")
	if len(f.Include) == 0 {
		at.Errorf("lists no file: list files or patterns, or leave it out")
	}
	in := &inclusion{file: f, dir: filepath.Dir(r.file), report: r, size: size, p: p}
	in.addToList(r.digest, filepath.Base(r.file))
	for i, pattern := range f.Include {
		for _, name := range in.findFiles(pattern, at.Index(i)) {
			switch {
			case slices.Contains(r.included, in.display(name)):
			case in.display(name) == filepath.Clean(r.file):
				at.Index(i).Errorf("%q includes the configuration file itself", pattern)
			case len(r.included) == maxIncluded:
				at.Errorf("more than %d files are included", maxIncluded)
				return
			default:
				in.readFile(name)
			}
		}
	}
	r.digest = digestBytes([]byte(in.list.String()))
}

func digestBytes(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func (in *inclusion) addToList(digest, name string) {
	_, _ = fmt.Fprintf(&in.list, "%s  %s\n", digest, name) // writing to memory does not fail
}

// display returns the name of a file for diagnostics: like that of the main file, relative or absolute.
func (in *inclusion) display(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(in.dir, name)
}

// findFiles returns the names that a pattern matches, relative to the main file if the pattern is.
func (in *inclusion) findFiles(pattern string, p *diag.List) (names []string) {
	folder, last := filepath.Split(pattern)
	switch _, err := filepath.Match(last, ""); {
	case err != nil || last == "":
		p.Errorf("%q is not a pattern: write a file such as hooks.d/site.yaml, or hooks.d/*.yaml", pattern)
		return nil
	case strings.ContainsAny(folder, `*?[\`):
		p.Errorf("%q has a wildcard in a folder, but only the name of the file may have one", pattern)
		return nil
	case !strings.ContainsAny(last, `*?[\`):
		return []string{filepath.Clean(pattern)}
	}
	dir := in.display(filepath.Clean("./" + folder))
	if filepath.IsAbs(folder) {
		dir = filepath.Clean(folder)
	}
	info, _ := os.Stat(dir) // nil if the folder does not exist
	in.p.Saw(dir, info)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		p.Errorf("%v", err)
		return nil
	}
	for _, entry := range entries { // sorted by name
		hidden := strings.HasPrefix(entry.Name(), ".") && !strings.HasPrefix(last, ".")
		if ok, _ := filepath.Match(last, entry.Name()); ok && !hidden {
			names = append(names, filepath.Join(folder, entry.Name()))
		}
	}
	if len(names) == 0 {
		p.Warnf("%q matches no file", pattern)
	}
	return names
}

// readFile adds the callers and hooks of a file, and what is wrong with it.
func (in *inclusion) readFile(name string) {
	r := newReport(in.display(name))
	in.report.included = append(in.report.included, r.file)
	data := r.readTrusted(in.p)
	in.addToList(r.digest, name)
	if in.size += len(data); in.size > maxFile {
		r.addDiagnostic(place{}, "", fmt.Sprintf("the configuration file and the files that it includes, up to this "+
			"one, are over %d MiB together", maxFile>>20))
		data = nil
	}
	var content includedFile
	if data == nil || !decode(data, &content, r) {
		r.broken[""] = true // what the other files refer to may be in this one
	}
	mergeEntries(&in.file.Callers, content.Callers, "callers", in.report, r)
	mergeEntries(&in.file.Hooks, content.Hooks, "hooks", in.report, r)
	in.report.addReport(r)
}

// mergeEntries adds the entries of a file to those of the files before it. An entry that is there already is an error.
func mergeEntries[T any](all *map[string]T, more map[string]T, key string, before, r *report) {
	if *all == nil && more != nil {
		*all = map[string]T{}
	}
	for name, entry := range more {
		path := joinPath(joinPath("", key), name)
		if first, twice := before.places[path]; twice {
			r.addDiagnostic(r.places[path], path,
				fmt.Sprintf("is already in %s:%d:%d", cmp.Or(first.file, before.file), first.line, first.column))
			continue
		}
		(*all)[name] = entry
	}
}

// readTrusted returns the content of the report's file, nil if it cannot be read, and reports what is wrong with it.
func (r *report) readTrusted(p *diag.List) []byte {
	info, _ := os.Stat(r.file) // nil if the file does not exist
	p.Saw(r.file, info)
	data, faults, err := pathsafe.ReadTrusted(r.file, r.file, maxFile, 0o022)
	if err != nil {
		r.addDiagnostic(place{}, "", fmt.Sprintf("reading configuration: %v", err))
	}
	for _, fault := range faults {
		r.addDiagnostic(place{}, "", fault)
	}
	r.digest = digestBytes(data)
	return data
}
