package config_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/certs"
	"sallyport/internal/config"
	"sallyport/internal/testenv"
)

func now() time.Time { return time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC) }

const secret = "a secret that is longer than 32 bytes"

// makeFiles makes a folder with all files that the configurations in testdata name.
func makeFiles(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if _, err := certs.Dev(filepath.Join(dir, "certs"), now(), false); err != nil {
		t.Fatal(err)
	}
	private := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	der, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"clients", "partner"} {
		makeAuthority(t, filepath.Join(dir, "certs", name))
	}
	writeFile(t, filepath.Join(dir, "secrets", "github"), secret, 0o600)
	writeFile(t, filepath.Join(dir, "secrets", "github2"), secret+"2", 0o600)
	writeFile(t, filepath.Join(dir, "secrets", "token"), secret+"3", 0o600)
	writeFile(t, filepath.Join(dir, "secrets", "short"), "less than 32 bytes", 0o600)
	writeFile(t, filepath.Join(dir, "secrets", "public"), secret+"!", 0o644)
	writeFile(t, filepath.Join(dir, "secrets", "ci.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), 0o644)
	writeFile(t, filepath.Join(dir, "secrets", "audit.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})), 0o600)
	return dir
}

// makeAuthority makes NAME.pem, a CA, and NAME.crl, which revokes one certificate.
func makeAuthority(t testing.TB, name string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: filepath.Base(name)}, NotBefore: now(), NotAfter: now().Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte{1},
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, name+".pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), 0o644)
	crl, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: now(), NextUpdate: now().Add(100 * time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(7), RevocationTime: now()}},
	}, ca, key)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, name+".crl", string(crl), 0o644)
}

func writeFile(t testing.TB, name, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, mode); err != nil { // independent of the umask
		t.Fatal(err)
	}
}

func env() config.Env {
	return config.Env{Now: now(), Getenv: func(string) (string, bool) { return "", false }}
}

// load writes text as a file of dir and loads it.
func load(t testing.TB, dir, text string) (*config.Config, []config.Diagnostic) {
	t.Helper()
	name := filepath.Join(dir, "sallyport.yaml")
	writeFile(t, name, text, 0o600)
	return config.Load(name, env())
}

// formatDiagnostics returns diagnostics as they are printed, without the folder.
func formatDiagnostics(dir string, found []config.Diagnostic) []string {
	var list []string
	for _, d := range found {
		list = append(list, strings.ReplaceAll(d.String(), dir+string(filepath.Separator), ""))
	}
	return list
}

func readTestdata(t testing.TB, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

var expectation = regexp.MustCompile(`(?m)^# expect: (.+?)\r?$`)

func TestLoad_FaultsAndTheirPlaces(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join("testdata", "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatal("no files", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			dir := makeFiles(t)
			text := readTestdata(t, filepath.Base(file))
			c, found := load(t, dir, text)
			var want []string
			for _, m := range expectation.FindAllStringSubmatch(text, -1) {
				want = append(want, "sallyport.yaml:"+m[1])
			}
			if got := formatDiagnostics(dir, found); !slices.Equal(got, want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			if hasErrors(found) != (c == nil) {
				t.Errorf("the configuration is %v, together with these diagnostics", c)
			}
		})
	}
}

func TestLoad_LineEndingsAndBOM(t *testing.T) {
	t.Parallel()
	dir := makeFiles(t)
	for _, name := range []string{"many.yaml", "keys.yaml"} {
		text := readTestdata(t, name)
		_, found := load(t, dir, text)
		want := formatDiagnostics(dir, found)
		for what, text := range map[string]string{
			"CR LF": strings.ReplaceAll(text, "\n", "\r\n"), "CR": strings.ReplaceAll(text, "\n", "\r"), "mark": "\ufeff" + text,
		} {
			if _, found := load(t, dir, text); !slices.Equal(formatDiagnostics(dir, found), want) {
				t.Errorf("%s, %s:\n%s\nwant\n%s", name, what, strings.Join(formatDiagnostics(dir, found), "\n"), strings.Join(want, "\n"))
			}
		}
	}
}

func hasErrors(found []config.Diagnostic) bool {
	return slices.ContainsFunc(found, func(d config.Diagnostic) bool { return !d.Warning })
}

func TestLoad_NotAMapping(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ text, want string }{
		"empty":               {"", ":1:1: there is nothing in this file"},
		"only a comment":      {"# nothing\n", ":1:1: there is nothing in this file"},
		"only a start":        {"---\n", ":1:1: there is nothing in this file"},
		"a list":              {"- a\n", ":1:1: is a list, but must be a mapping"},
		"text":                {"text\n", ":1:1: is text, but must be a mapping"},
		"null":                {"~\n", ":1:1: is empty: give it a value, or leave it out"},
		"two documents":       {"listen: ':1'\n---\nlisten: ':2'\n", ":2:1: a second document starts here, and only one is read"},
		"a path in braces":    {"hooks: {a: {params: {x: {from: body.a[0].b}}}}", ":1:38: this is not YAML: ',' or '}' must be specified (text that contains one of []{}, must be in quotes here)"},
		"no YAML":             {"listen: ':1'\nhooks: [\n", ":2:8: this is not YAML: sequence end token ']' not found"},
		"no UTF-8":            {"listen: ':1'\nstate: b\xff\n", ":2:9: this is not UTF-8"},
		"NUL":                 {"listen: \x00", ":1:9: the character U+0000 is not allowed here: write it as an escape in double quotes"},
		"escape":              {"# \x1b[2J\n", ":1:3: the character U+001B is not allowed here: write it as an escape in double quotes"},
		"looks like another":  {"# \u202e\n", ":1:3: the character U+202E is not allowed here: write it as an escape in double quotes"},
		"flow without end":    {strings.Repeat("[", 1000), ":1:65: this is more than 64 levels deep"},
		"maps without end":    {strings.Repeat("{a: ", 1000), ":1:257: this is more than 64 levels deep"},
		"entries without end": {strings.Repeat("- ", 1000), ":1:129: this is more than 64 levels deep"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			cfg, found := load(t, dir, c.text)
			if got := formatDiagnostics(dir, found); cfg != nil || len(got) != 1 || got[0] != "sallyport.yaml"+c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestLoad_FileOthersMayWrite(t *testing.T) {
	t.Parallel()
	for mode, mend := range map[os.FileMode]string{0o620: "chmod 0600", 0o602: "chmod 0600", 0o666: "chmod 0644"} {
		dir := makeFiles(t)
		name := filepath.Join(dir, "sallyport.yaml")
		writeFile(t, name, readTestdata(t, "design.yaml")+"surplus: 1\n", mode)
		c, found := config.Load(name, env())
		if c != nil || len(found) != 2 || found[0].Line != 0 || !strings.Contains(found[0].Text, mend) ||
			!strings.Contains(found[1].Text, "unknown key") {
			t.Errorf("%o: %q", mode, found)
		}
	}
}

// TestLoad_FileOfOtherOwner: the owner of the file, of its folder or of a link to it decides which commands run,
// because a mode does not bind the owner. So a file that another user owns in one of these ways is refused.
func TestLoad_FileOfOtherOwner(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		testenv.Skip(t, "whose configuration is refused, because only root may give files away")
	}
	for what, give := range map[string]string{"the file": "etc/real.yaml", "its folder": "etc", "a link to it": "sallyport.yaml"} {
		dir := makeFiles(t)
		writeFile(t, filepath.Join(dir, "etc", "real.yaml"), readTestdata(t, "design.yaml")+"surplus: 1\n", 0o600)
		name := filepath.Join(dir, "sallyport.yaml")
		symlink(t, "etc/real.yaml", name)
		if err := os.Lchown(filepath.Join(dir, give), 65534, -1); err != nil {
			t.Fatal(err)
		}
		c, found := config.Load(name, env())
		if c != nil || len(found) < 2 || found[0].Line != 0 || !strings.HasPrefix(found[0].Text, filepath.Join(dir, give)+" belongs to another user than root and 0") ||
			!slices.ContainsFunc(found, func(d config.Diagnostic) bool { return strings.Contains(d.Text, "unknown key") }) {
			t.Errorf("%s: %q", what, found)
		}
	}
}

func TestLoad_UnreadableFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	large := filepath.Join(dir, "large")
	writeFile(t, large, "", 0o600)
	if err := os.Truncate(large, 16<<20+1); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		pipe: "not a regular file", dir: "not a regular file", large: "over 16384 KiB", filepath.Join(dir, "absent"): "no such file",
	} {
		c, found := config.Load(name, env())
		if c != nil || len(found) != 1 || found[0].Line != 0 || !strings.Contains(found[0].String(), want) {
			t.Errorf("%s: %q, want %q", name, found, want)
		}
	}
}

func TestStateFolder_Faults(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		make func(t *testing.T, state string)
		want string
	}{
		"is made later":         {func(t *testing.T, s string) { t.Helper(); mkdir(t, filepath.Dir(s), 0o755) }, ""},
		"has no parent folder":  {func(*testing.T, string) {}, "no such file or directory"},
		"in a writable folder":  {func(t *testing.T, s string) { t.Helper(); mkdir(t, s, 0o700); chmod(t, filepath.Dir(s), 0o775) }, "chmod go-w"},
		"can be made by others": {func(t *testing.T, s string) { t.Helper(); mkdir(t, filepath.Dir(s), 0o777) }, "chmod go-w"},
		"is ours":               {func(t *testing.T, s string) { t.Helper(); mkdir(t, s, 0o700) }, ""},
		"is behind a link":      {func(t *testing.T, s string) { t.Helper(); mkdir(t, s+"2", 0o700); symlink(t, s+"2", s) }, ""},
		"others may list":       {func(t *testing.T, s string) { t.Helper(); mkdir(t, s, 0o704) }, "chmod 0700"},
		"a group may enter":     {func(t *testing.T, s string) { t.Helper(); mkdir(t, s, 0o710) }, "chmod 0700"},
		"is a file":             {func(t *testing.T, s string) { t.Helper(); writeFile(t, s, "", 0o600) }, "not a folder"},
		"is beneath a file":     {func(t *testing.T, s string) { t.Helper(); writeFile(t, filepath.Dir(s), "", 0o600) }, "not a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := makeFiles(t)
			c.make(t, filepath.Join(dir, "var", "state"))
			cfg, found := load(t, dir, strings.Replace(readTestdata(t, "design.yaml"), "state: state", "state: var/state", 1))
			if c.want == "" {
				if len(found) > 0 || cfg.State != filepath.Join(dir, "var", "state") {
					t.Errorf("%q", found)
				}
				return
			}
			if cfg != nil || len(found) != 1 || found[0].Path != "state" || !strings.Contains(found[0].Text, c.want) {
				t.Errorf("%q, want %q", found, c.want)
			}
		})
	}
}

func chmod(t *testing.T, name string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(name, mode); err != nil {
		t.Fatal(err)
	}
}

func mkdir(t *testing.T, name string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(name, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, mode); err != nil {
		t.Fatal(err)
	}
}

func symlink(t *testing.T, to, name string) {
	t.Helper()
	if err := os.Symlink(to, name); err != nil {
		t.Fatal(err)
	}
}

func TestLoad_Values(t *testing.T) {
	t.Parallel()
	dir := makeFiles(t)
	c, found := load(t, dir, readTestdata(t, "design.yaml"))
	if len(found) > 0 {
		t.Fatal(found)
	}
	limit := func(l config.Limit, rate float64, burst int) bool { return float64(l.Rate) == rate && l.Burst == burst }
	l := c.Limits
	for what, ok := range map[string]bool{
		"listen":        c.Listen == ":8443",
		"state":         c.State == filepath.Join(dir, "state"),
		"tls":           c.TLS != nil && len(c.TLS.Certificates) == 1 && c.TLS.ClientCAs != nil,
		"drain":         c.Drain == 30*time.Second,
		"address":       limit(l.Address, 20, 100),
		"failures":      limit(l.Failures, 10.0/60, 20),
		"connections":   l.Connections == 1024 && l.ConnectionsPerAddress == 64,
		"callers":       slices.Equal(c.Auth.Names(), []string{"actions", "etl", "github"}),
		"default limit": limit(c.CallerLimits["github"], 1, 30),
		"own limit":     limit(c.CallerLimits["etl"], 0.1, 2),
		"hook":          len(c.Hooks) == 1 && c.Hooks["start"].Path == "/start" && c.Hooks["start"].Timeout == time.Hour,
	} {
		if !ok {
			t.Error(what)
		}
	}
	if h, ok := c.Hook("start"); !ok || h != c.Hooks["start"] {
		t.Error("Hook does not find start")
	}
	if _, ok := c.Hook("stop"); ok {
		t.Error("Hook finds what is not there")
	}
}

func TestExpiries_EveryCertificate(t *testing.T) {
	t.Parallel()
	dir := makeFiles(t)
	c, found := load(t, dir, readTestdata(t, "all.yaml"))
	if c == nil {
		t.Fatal(found)
	}
	var got []string
	for _, e := range c.Expiries() {
		got = append(got, strings.Join([]string{e.What, e.File, e.Subject, e.NotAfter.Format(time.DateOnly)}, ", "))
	}
	want := []string{
		"server certificate, certs/server.pem, localhost, 2027-02-28",
		"client CA, certs/clients.pem, CN=clients, 2027-01-11",
		"client CA, certs/partner.pem, CN=partner, 2027-01-11",
		"CRL, certs/clients.crl, CN=clients, 2026-12-04",
		"CRL, certs/partner.crl, CN=partner, 2026-12-04",
	}
	if slices.Sort(got); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestLimit_Defaults(t *testing.T) {
	t.Parallel()
	text := strings.Replace(readTestdata(t, "design.yaml"), "limit: {rate: 6/m, burst: 2}", "limit: {burst: 3}", 1)
	c, found := load(t, makeFiles(t), text+"limits: {caller: {rate: 100/h}, address: {burst: 7}}\n")
	if c == nil {
		t.Fatal(found)
	}
	for name, want := range map[string]string{"etl": "100/h, burst 3", "github": "100/h, burst 30"} {
		if got := c.CallerLimits[name].String(); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if got := c.Limits.Address.String(); got != "20/s, burst 7" {
		t.Error(got)
	}
}

func TestRate_Text(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]float64{"20/s": 20, "6/m": 0.1, "100/h": 100.0 / 3600, "1000000/s": 1e6, "7/m": 7.0 / 60} {
		var r config.Rate
		if err := r.UnmarshalText([]byte(text)); err != nil || float64(r) != want || r.String() != text {
			t.Errorf("%s: %g %s %v", text, float64(r), r, err)
		}
	}
	for _, text := range []string{"", "6", "6/", "/s", "0/s", "-1/s", "1.5/s", "6/d", "6 / m", "06/m", "1000001/s", "99999999999999999999/s", "6/m\n", "6/M"} {
		var r config.Rate
		if err := r.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is read as %g", text, float64(r))
		}
	}
}

func TestListen_Addresses(t *testing.T) {
	t.Parallel()
	good := readTestdata(t, "design.yaml")
	dir := makeFiles(t)
	for _, address := range []string{":8443", "127.0.0.1:0", "[::1]:65535", "[fe80::1%eth0]:1", "localhost:8443", "hooks.example.com:443"} {
		if c, found := load(t, dir, strings.Replace(good, ":8443", address, 1)); c == nil || c.Listen != address {
			t.Errorf("%s: %v", address, found)
		}
	}
	for _, address := range []string{"8443x", ":", ":x", ":https", ":65536", ":-1", ":+1", ":01", "::1:8443", "127.0.0.1", "a b:1", "https://a:1", "[127.0.0.1:1", "*:1"} {
		c, found := load(t, dir, strings.Replace(good, ":8443", address, 1))
		if c != nil || len(found) != 1 || found[0].Path != "listen" {
			t.Errorf("%s: %v", address, found)
		}
	}
}

func TestDescribe_NoSecrets(t *testing.T) {
	t.Parallel()
	dir := makeFiles(t)
	c, found := load(t, dir, readTestdata(t, "all.yaml"))
	if c == nil {
		t.Fatal(found)
	}
	var b bytes.Buffer
	c.Describe(&b)
	got := strings.ReplaceAll(b.String(), dir+string(filepath.Separator), "")
	if want := readTestdata(t, "all.txt"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if strings.Contains(got, secret) {
		t.Error("a secret is printed")
	}
}

func manyHooks() string {
	var b strings.Builder
	b.WriteString("state: state\ntls: {cert: certs/server.pem, key: certs/server.key}\n" +
		"callers:\n  github: {hmac: {scheme: github, keys: [{id: a, file: secrets/github}]}}\nhooks:\n")
	for i := range 10_000 {
		_, _ = fmt.Fprintf(&b, "  hook%d:\n    callers: [github]\n    command: [/bin/echo, \"--date={date}\", \"{region}\"]\n"+
			"    params:\n      date: {from: body.date, match: '\\d{4}-\\d{2}'}\n      region: {from: query.region, enum: [eu, us]}\n", i)
	}
	return b.String()
}

func TestLoad_TenThousandHooks(t *testing.T) {
	t.Parallel()
	dir := makeFiles(t)
	text := manyHooks()
	c, found := load(t, dir, text)
	if c == nil || len(c.Hooks) != 10_000 {
		t.Fatal(found)
	}
	c, found = load(t, dir, text+"    timeout: 5\n")
	if got := formatDiagnostics(dir, found); c != nil || len(got) != 1 || got[0] != `sallyport.yaml:60006:14: hooks.hook9999.timeout: "5" is not a duration: write 30s, 10m or 1h30m` {
		t.Errorf("%q", got)
	}
}

func BenchmarkLoadTenThousandHooks(b *testing.B) {
	dir := makeFiles(b)
	name := filepath.Join(dir, "sallyport.yaml")
	writeFile(b, name, manyHooks(), 0o600)
	for b.Loop() {
		if c, found := config.Load(name, env()); c == nil {
			b.Fatal(found)
		}
	}
}

func FuzzLoad(f *testing.F) {
	files, err := filepath.Glob(filepath.Join("testdata", "*.yaml"))
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		f.Add([]byte(readTestdata(f, filepath.Base(file))))
	}
	dir := makeFiles(f)
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > 64<<10 {
			return
		}
		// Each process of the fuzzer has a separate folder and does not run tests in parallel.
		c, found := load(t, dir, string(text))
		if hasErrors(found) != (c == nil) {
			t.Errorf("the configuration is %v, together with %v", c, found)
		}
		count := bytes.Count(text, []byte("\n")) + bytes.Count(text, []byte("\r")) + 1
		for _, d := range found {
			if d.Line < 1 || d.Line > count+1 || d.Column < 0 || d.Text == "" {
				t.Errorf("%+v, in a file of %d lines", d, count)
			}
		}
		if c != nil {
			c.Describe(new(bytes.Buffer))
		}
	})
}
