package hook

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"sallyport/internal/account"
	"sallyport/internal/diag"
)

// Hook is a Spec that was checked and compiled. It never changes. It has many fields because, like Spec, it has one for
// each key of a hook.
type Hook struct {
	Name            string
	Path            string
	Callers         []string // all callers with any right to it
	Unauthenticated bool
	Timeout         time.Duration
	Grace           time.Duration
	Dir             string           // empty for the folder of the run
	User            *account.Account // as which the command runs; nil for the user of the server
	Umask           int
	StdinBody       bool
	Busy            Policy
	QueueTimeout    time.Duration // zero if runs may be queued without a limit
	// RerunInterrupted says that the command may be run again after an interrupted run: the end of that run was not
	// observed.
	RerunInterrupted bool
	Retry            RetrySpec
	Keep             KeepSpec
	Body             BodySpec
	Output           OutputSpec
	Wait             time.Duration // of the answer to a delivery, for the end of its run
	Answer           AnswerSpec

	command []template
	env     map[string]template
	flight  template
	title   template
	params  map[string]*param
	when    []Condition
	spec    *Spec
	may     map[string][]Right
	digest  string
}

// Right is what a caller may do with a hook.
type Right string

// The rights. MayRead and MayCancel include the runs that other callers started.
const (
	MayStart  Right = "start"
	MayRead   Right = "read"
	MayCancel Right = "cancel"
)

// May reports whether a caller has a right.
func (h *Hook) May(caller string, r Right) bool { return slices.Contains(h.may[caller], r) }

// Spec returns the hook as it was written, with the defaults filled in.
func (h *Hook) Spec() Spec { return *h.spec }

// groupPrefix begins the name of a flight of a group. The name of a hook has no colon.
const groupPrefix = "group:"

// Flight returns the name of a flight, of which one run may be in progress: the name of the hook or of its group, and,
// if it has a key, the filled template.
func (h *Hook) Flight(v Values) string {
	if len(h.flight.holes) == 0 {
		return h.flightOwner()
	}
	return h.flightOwner() + "/" + h.flight.fillDistinct(v)
}

func (h *Hook) flightOwner() string {
	if group := h.spec.Flight.Group; group != "" {
		return groupPrefix + group
	}
	return h.Name
}

// InGroup reports whether runs of other hooks may have the flights of h.
func (h *Hook) InGroup() bool { return h.spec.Flight.Group != "" }

// SharesFlight reports whether a run of h with the values v would have the given flight. The run may have started under
// an earlier version of the hook: if v lacks a value that the flight needs, the run counts as one of the flight, if
// that is a flight of the hook or its group.
func (h *Hook) SharesFlight(flight string, v Values) bool {
	if FlightHook(flight) != h.flightOwner() {
		return false
	}
	for _, hole := range h.flight.holes {
		if _, known := v[hole]; !known {
			return true
		}
	}
	return h.Flight(v) == flight
}

// FlightHook returns the name of the hook that a flight belongs to. The name of a hook has no slash. For a flight of a
// group, it returns a text that is not the name of a hook.
func FlightHook(flight string) string {
	name, _, _ := strings.Cut(flight, "/")
	return name
}

// Argv returns the argument vector. It has as many arguments as the command has in the file, for any values. It
// checks the values again, because the process that starts the command does not rely on the checks of another
// process.
func (h *Hook) Argv(v Values) ([]string, error) {
	if problems := h.CheckValues(v); len(problems) > 0 {
		return nil, fmt.Errorf("parameter %s %s", problems[0].Param, problems[0].Text)
	}
	argv := make([]string, len(h.command))
	for i, t := range h.command {
		argv[i] = t.fillHoles(v)
	}
	return argv, nil
}

// RunURL returns the address of a run at the server, or an empty text if the file does not say the address of the
// server.
func (h *Hook) RunURL(run string) string {
	if h.spec.ServerURL == "" {
		return ""
	}
	return strings.TrimSuffix(h.spec.ServerURL, "/") + "/runs/" + run
}

// checkDashes reports the values because of which an argument would begin with "-", so that the command would read an
// option. A literal "--" ends the options for the holes that follow it, up to the next literal argument of the file:
// that may be a program with its own options, as in kubectl exec pod -- job {x}.
func (h *Hook) checkDashes(v Values) (problems []ParamProblem) {
	operands := false
	for _, t := range h.command {
		if len(t.holes) == 0 {
			operands = t.literals[0] == "--"
			continue
		}
		if !operands && t.beginsWithHole() && strings.HasPrefix(t.fillHoles(v), "-") {
			problems = append(problems, ParamProblem{Param: t.holes[0], Text: `may not begin with "-" here`})
		}
	}
	return problems
}

// checkDefaults refuses a default because of which an argument would begin with "-": every delivery without the value
// would be refused.
func (h draft) checkDefaults(p *diag.List) {
	operands := false
	for i, t := range h.command {
		if len(t.holes) == 0 {
			operands = t.literals[0] == "--"
			continue
		}
		if operands {
			continue
		}
		for j, hole := range t.holes {
			if t.literals[j] != "" || h.params[hole] == nil || h.params[hole].fallback == nil {
				break // the argument begins with a literal, or with a value of the sender
			}
			value := *h.params[hole].fallback
			if strings.HasPrefix(value, "-") {
				p.At(hole, "default").Errorf(`%q can never be used: argument %d may not begin with "-". `+
					`Write "--name={%s}", or "--" before it`, value, i, hole)
			}
			if value != "" {
				break
			}
		}
	}
}

// Environ returns the environment variables that the hook adds, sorted.
func (h *Hook) Environ(v Values) []string {
	env := make([]string, 0, len(h.env))
	for _, name := range slices.Sorted(maps.Keys(h.env)) {
		env = append(env, name+"="+h.env[name].fillHoles(v))
	}
	return env
}

// Compile checks every hook and returns the hooks by name. Problems are added to p, at the position of the mapping of
// hooks. The result is valid only if p is not Bad afterwards. callers are the configured callers.
func Compile(specs map[string]*Spec, callers []string, p *diag.List) map[string]*Hook {
	hooks := make(map[string]*Hook, len(specs))
	paths := make(map[string][]*Hook, len(specs))
	known := make(map[string]bool, len(callers))
	for _, c := range callers {
		known[c] = true
	}
	for _, name := range slices.Sorted(maps.Keys(specs)) {
		if specs[name] == nil {
			p.At(name).Errorf("is empty: a hook needs callers and a command")
			continue
		}
		h := compile(name, *specs[name], known, p.At(name))
		checkNeighbours(h, paths[h.Path], p.At(name, "path"))
		paths[h.Path] = append(paths[h.Path], h)
		hooks[name] = h
	}
	return hooks
}

// checkNeighbours checks a hook against the others of the same path.
func checkNeighbours(h *Hook, others []*Hook, p *diag.List) {
	for _, other := range others {
		if h.Unauthenticated || other.Unauthenticated {
			p.Errorf("%s is already the path of the hook %s: "+
				"hooks share a path only if both have callers, by which a delivery is authenticated once",
				h.Path, other.Name)
			continue
		}
		if h.Wait != 0 || other.Wait != 0 {
			p.Errorf("%s is also the path of the hook %s: an answer for several hooks does not wait for the end of their runs, "+
				"so leave wait out", h.Path, other.Name)
		}
		shared := slices.IndexFunc(h.Callers, func(c string) bool {
			return h.May(c, MayStart) && other.May(c, MayStart)
		})
		if shared < 0 || len(h.when) > 0 && len(other.when) > 0 {
			continue
		}
		always := h.Name
		if len(h.when) > 0 {
			always = other.Name
		}
		p.Warnf("%s is also the path of the hook %s, and %s has no conditions (when): "+
			"a delivery of the caller %s can start both", h.Path, other.Name, always, h.Callers[shared])
	}
}

// draft is a hook that is being compiled: its methods check the spec, and set what the methods of a [Hook] only read.
type draft struct{ *Hook }

func compile(name string, s Spec, known map[string]bool, p *diag.List) *Hook {
	fillDefaults(name, &s)
	h := draft{&Hook{
		Name: name, Path: s.Path, Unauthenticated: s.Unauthenticated, Keep: s.Keep,
		Busy: Policy{Kind: PolicyKind(s.Busy.Kind), Depth: s.Busy.Queue}, QueueTimeout: s.QueueTimeout,
		RerunInterrupted: s.OnInterrupted == "rerun", Retry: s.Retry,
		Timeout: s.Timeout, Grace: s.Grace, Dir: s.Dir, Umask: int(*s.Umask), StdinBody: s.Stdin == "body",
		Body: s.Body, Output: s.Output, Wait: s.Wait, Answer: s.Answer,
		spec: &s,
	}}
	h.checkPath(p)
	h.checkCallers(known, p)
	h.checkBounds(p)
	h.resolveUser(p)
	h.when = compileWhen(s.When, s.Body.As, p.At("when"))
	h.params = make(map[string]*param, len(s.Params))
	for _, pn := range slices.Sorted(maps.Keys(s.Params)) {
		h.params[pn] = compileParam(pn, s.Params[pn], s.Body.As, p.At("params", pn))
	}
	used := h.compileTemplates(p)
	for _, pn := range slices.Sorted(maps.Keys(h.params)) {
		if !used[pn] {
			p.At("params", pn).Errorf("nothing uses the parameter %s: no hole {%s} in command, env, flight or title", pn, pn)
		}
	}
	checkCommand(h.command, s.Command, cmp.Or(s.Env["PATH"], DefaultPath), p.At("command"))
	h.checkDefaults(p.At("params"))
	h.digest = digestSpec(name, &s)
	return h.Hook
}

// DefaultKeep returns how long runs are kept by default. It also applies to the runs of a hook that was removed from
// the file.
func DefaultKeep() KeepSpec { return KeepSpec{Age: 30 * 24 * time.Hour, Count: 1000} }

func fillDefaults(name string, s *Spec) {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	size := func(d *Size, v Size) {
		if *d == 0 {
			*d = v
		}
	}
	def(&s.Timeout, time.Hour)
	def(&s.Grace, 10*time.Second)
	def(&s.Body.Timeout, 10*time.Second)
	if s.Umask == nil {
		u := DefaultUmask
		s.Umask = &u
	}
	if s.Retry.Times > 0 {
		def(&s.Retry.After, 30*time.Second)
	}
	size(&s.Body.Max, 1<<20)
	if s.Body.As == "" {
		s.Body.As = bodyJSON
	}
	size(&s.Output.Head, 1<<20)
	size(&s.Output.Tail, 9<<20)
	if s.Path == "" {
		s.Path = "/hooks/" + name
	}
	switch {
	case s.Busy.Queue != 0:
		s.Busy.Kind = string(Queue)
	case s.Busy.Kind == "":
		s.Busy.Kind = string(Reject)
	}
	def(&s.Keep.Age, DefaultKeep().Age)
	if s.Keep.Count == 0 {
		s.Keep.Count = DefaultKeep().Count
	}
}

// ReservedPaths returns the first parts of the paths that the server itself uses.
func ReservedPaths() []string { return []string{"runs", "healthz", "readyz", "metrics", "ui"} }

func isReserved(p string) bool {
	first, _, _ := strings.Cut(strings.TrimPrefix(p, "/"), "/")
	return first == "" || slices.Contains(ReservedPaths(), first)
}

var pathForm = regexp.MustCompile(`^(/[A-Za-z0-9._~-]+)+$`)

func (h draft) checkPath(p *diag.List) {
	p = p.At("path")
	switch {
	case !pathForm.MatchString(h.Path) || path.Clean(h.Path) != h.Path:
		p.Errorf("%q is not a plain path: write /name with letters, digits and . _ ~ -", h.Path)
	case isReserved(h.Path):
		p.Errorf("%s is a path of the server itself", h.Path)
	}
}

// MaxQueue is the most runs of a flight that may be queued.
const MaxQueue = 10_000

// maxBodyTimeout is the highest timeout of a body that the file may set.
const maxBodyTimeout = 10 * time.Minute

func (h draft) checkCallers(known map[string]bool, p *diag.List) {
	at := p.At("callers")
	grants := h.spec.Callers
	switch {
	case h.Unauthenticated && len(grants) > 0:
		p.At("dangerously_unauthenticated").Errorf("contradicts callers: leave one of the two out")
	case h.Unauthenticated:
		p.At("dangerously_unauthenticated").Warnf("any client that reaches the server may start the hook %s", h.Name)
	case len(grants) == 0:
		at.Errorf("is empty: no caller could start this hook")
	}
	h.may = make(map[string][]Right, len(grants))
	for i, g := range grants {
		if !known[g.Caller] {
			at.Index(i).Errorf("unknown caller %q", g.Caller)
		}
		if h.may[g.Caller] != nil {
			at.Index(i).Errorf("%q is listed twice", g.Caller)
		}
		h.Callers = append(h.Callers, g.Caller)
		h.may[g.Caller] = []Right{MayStart}
		if g.May != nil {
			h.may[g.Caller] = parseRights(g.May, at.Index(i).At("may"))
		}
	}
}

func parseRights(written []string, p *diag.List) []Right {
	list := make([]Right, len(written))
	for i, w := range written {
		list[i] = Right(w)
		if list[i] != MayStart && list[i] != MayRead && list[i] != MayCancel {
			p.Index(i).Errorf("%q is not a right: write start, read or cancel", w)
		}
		if slices.Contains(list[:i], list[i]) {
			p.Index(i).Errorf("%q is listed twice", w)
		}
	}
	if len(list) == 0 {
		p.Errorf("is empty: leave the caller out")
	}
	return list
}

func (h draft) checkBounds(p *diag.List) {
	s := h.spec
	switch h.Busy.Kind {
	case Reject, Join, Replace:
	case Queue:
		if s.Busy.Queue < 1 || s.Busy.Queue > MaxQueue {
			p.At("busy").Errorf("a queue has a length from 1 to %d: busy: {queue: 10}", MaxQueue)
		}
	default:
		p.At("busy").Errorf("%q is not a policy: write reject, {queue: N}, join or replace", s.Busy.Kind)
	}
	if s.QueueTimeout != 0 && h.Busy.Kind == Reject {
		p.At("queue_timeout").Errorf("needs a queue, which busy: reject does not have")
	}
	if s.OnInterrupted != "" && s.OnInterrupted != "rerun" {
		p.At("on_interrupted").Errorf("%q is not a policy: write rerun, or omit the key", s.OnInterrupted)
	}
	s.Retry.check(p.At("retry"))
	s.checkAnswer(p)
	if s.Keep.Count < 1 || s.Keep.Age < 0 {
		p.At("keep").Errorf("needs a count of at least 1, and an age of at least 0")
	}
	if s.Stdin != "" && s.Stdin != "body" {
		p.At("stdin").Errorf("%q is not a source: write body, or omit the key", s.Stdin)
	}
	if s.Dir != "" && (!path.IsAbs(s.Dir) || !isFolder(s.Dir)) {
		p.At("dir").Errorf("%q is not the absolute path of an existing folder", s.Dir)
	}
	positive := func(d time.Duration, p *diag.List) {
		if d < 0 {
			p.Errorf("is below zero")
		}
	}
	positive(s.Timeout, p.At("timeout"))
	positive(s.Grace, p.At("grace"))
	positive(s.QueueTimeout, p.At("queue_timeout"))
	positive(s.Body.Timeout, p.At("body", "timeout"))
	if s.Body.Timeout > maxBodyTimeout {
		p.At("body", "timeout").Errorf("%s is over %s: the sender is not authenticated "+
			"until the whole body has arrived", s.Body.Timeout, maxBodyTimeout)
	}
	s.Body.checkForm(p.At("body", "as"))
	const stored = 900 << 20 // SQLite limits a row to a billion bytes, and the row of the body also has the parameters
	switch {
	case s.Body.Max > 1<<30:
		p.At("body", "max").Errorf("is over 1GiB, and a body is held in memory while it is verified")
	case s.Stdin == "body" && s.Body.Max > stored:
		p.At("body", "max").Errorf("is over 900MiB, and with stdin: body it is kept in the database")
	}
	if s.Output.Head > 1<<40 || s.Output.Tail > 1<<40 {
		p.At("output").Errorf("has a head or a tail over 1TiB")
	}
}

// checkAnswer checks the wait for the end of a run, and what the answer then says.
func (s *Spec) checkAnswer(p *diag.List) {
	if s.Wait < 0 || s.Wait > MaxWait || s.Wait%time.Second != 0 {
		p.At("wait").Errorf("%s is not a whole number of seconds from 0 to %d", s.Wait, MaxWait/time.Second)
	}
	if s.Answer != (AnswerSpec{}) && s.Wait == 0 {
		p.At("answer").Errorf("needs wait: an answer that does not wait for the end of the run cannot tell it")
	}
	switch s.Answer.Failed {
	case 0, 409, 422, 500: // others speak of the delivery: 503, for example, that it may be sent again
	default:
		p.At("answer", "failed").Errorf("%d is not a status for a run that failed: write 409, 422 or 500", s.Answer.Failed)
	}
	switch {
	case s.Answer.Output > maxAnswerOutput:
		p.At("answer", "output").Errorf("is over 64KiB: an answer is held in memory")
	case s.Answer.Output > 0 && s.Unauthenticated:
		p.At("answer", "output").Errorf("would show the output to any client, because the hook is unauthenticated")
	}
}

// maxRetries is the highest number of attempts after the first that the file may set.
const maxRetries = 100

func (r *RetrySpec) check(p *diag.List) {
	isSet := r.Times != 0 || r.After != 0 || r.Codes != nil
	if isSet && (r.Times < 1 || r.Times > maxRetries) {
		p.At("times").Errorf("%d is not a number of attempts from 1 to %d: retry: {times: 2}", r.Times, maxRetries)
	}
	if r.After < 0 {
		p.At("after").Errorf("is below zero")
	}
	if r.Codes != nil && len(r.Codes) == 0 {
		p.At("codes").Errorf("is empty: no run would be repeated")
	}
	for i, code := range r.Codes {
		if code < 1 || code > 255 {
			p.At("codes").Index(i).Errorf("%d is not an exit code of a command that failed: write 1 to 255", code)
		}
	}
}

// compileTemplates parses command, env, flight and title, and returns the parameters that they use.
func (h draft) compileTemplates(p *diag.List) map[string]bool {
	used := map[string]bool{}
	read := func(s string, p *diag.List) template {
		t, err := parseTemplate(s)
		if err != nil {
			p.Errorf("%v", err)
			return template{literals: []string{s}}
		}
		for _, hole := range t.holes {
			if _, ok := h.params[hole]; !ok {
				p.Errorf("no parameter fills the hole {%s}", hole)
			}
			used[hole] = true
		}
		return t
	}
	for i, s := range h.spec.Command {
		t := read(s, p.At("command").Index(i))
		h.command = append(h.command, t)
	}
	h.env = make(map[string]template, len(h.spec.Env))
	for _, name := range slices.Sorted(maps.Keys(h.spec.Env)) {
		at := p.At("env", name)
		t := read(h.spec.Env[name], at)
		checkEnv(name, t, at)
		h.env[name] = t
	}
	h.flight = h.compileFlight(read, p.At("flight"))
	h.title = read(h.spec.Title, p.At("title"))
	return used
}

var groupForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// compileFlight returns the template of the key.
func (h draft) compileFlight(read func(string, *diag.List) template, p *diag.List) template {
	s, at := h.spec.Flight, p
	if s.Group != "" {
		at = p.At("key")
		if !groupForm.MatchString(s.Group) {
			p.At("group").Errorf("%q is not a name: use up to 64 letters, digits and . _ -", s.Group)
		}
	}
	key := read(s.Key, at)
	if s.Key != "" && len(key.holes) == 0 {
		at.Errorf("has no hole: one run at a time for the hook or group is the default")
	}
	return key
}

// steeringVariables matches variables that make a program load or run something else, or find its configuration
// elsewhere, so their values must not depend on the sender.
var steeringVariables = regexp.MustCompile(`^(PATH|IFS|ENV|HOME|SHELL|SHELLOPTS|PS4|CDPATH|` +
	`PROMPT_COMMAND|ZDOTDIR|BASH.*|XDG_.*|` +
	`LD_.*|DYLD_.*|GLIBC_.*|MALLOC_.*|GCONV_PATH|LOCPATH|NLSPATH|TERMINFO.*|HOSTALIASES|RES_OPTIONS|` +
	`LOCALDOMAIN|TMPDIR|` +
	`(PYTHON|PERL|RUBY).*|(NODE|NPM|npm|JAVA|_JAVA|JDK_JAVA|GIT|SSH|LUA|DOTNET|CORECLR|COMPLUS|` +
	`ERL|CARGO|AWS|DOCKER|R|MAKE)_.*|` +
	`PHPRC|PHP_INI.*|TCLLIBPATH|RUSTC.*|CLASSPATH|GO(ENV|FLAGS|PATH|ROOT|PROXY|TOOLCHAIN|PRIVATE|` +
	`(NO)?SUMDB|INSECURE)|(GNU)?MAKE(FLAGS|FILES)|` +
	`PG(HOST.*|SERVICE.*|SYSCONFDIR|PASSFILE|SSL.*)|CC|CXX|LD|LESS(OPEN|CLOSE)?|EDITOR|VISUAL|` +
	`(MAN)?PAGER|BROWSER|KUBECONFIG|CURL_HOME|WGETRC|` +
	`OPENSSL_.*|SSL_.*|(?i:.*_proxy))$`)

func checkEnv(name string, t template, p *diag.List) {
	switch {
	case !isParamName(name):
		p.Errorf("%q is not a name for an environment variable", name)
	case strings.HasPrefix(name, "SALLYPORT_") || name == "TRACEPARENT":
		p.Errorf("%s is set by the server itself", name)
	case len(t.holes) > 0 && steeringVariables.MatchString(name):
		p.Errorf("%s decides what programs load or run, so its value cannot have a hole", name)
	case strings.ContainsRune(strings.Join(t.literals, ""), 0):
		p.Errorf("has a NUL")
	}
}
