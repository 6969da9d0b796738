package process

import (
	"os"
	"strconv"
	"strings"

	"sallyport/internal/account"
	"sallyport/runner/hook"
)

// loginNames returns the names of the variables that describe the user as which a command runs, and TZ.
func loginNames() []string { return []string{"HOME", "USER", "LOGNAME", "SHELL", "TZ"} }

// LoginEnv returns those variables of the server's environment that the supervisor needs for commands. The supervisor
// gets no others, because they may hold secrets.
func LoginEnv(lookup func(string) (string, bool)) (env []string) {
	for _, name := range loginNames() {
		if value, ok := lookup(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// loginEnvironment returns the variables of loginNames for commands that run as the user of the server. The home, the
// name and the shell come from the entry of the user in /etc/passwd. A user without an entry (in a container, or known
// to a directory service only) gets those of the server's environment, else / and the user id. TZ is that of the server.
// If the server has no TZ, it is not set, and the command uses /etc/localtime.
func loginEnvironment(server []string) []string {
	get := func(name, otherwise string) string {
		if value, ok := findVariable(server, name); ok {
			return value
		}
		return otherwise
	}
	uid := strconv.Itoa(os.Geteuid())
	a, err := account.Find(uid)
	if err != nil {
		a = &account.Account{Name: get("USER", uid), Home: get("HOME", "/")}
	}
	if a.Shell == "" {
		a.Shell = get("SHELL", "")
	}
	return appendZone(a.Environ(), server)
}

// loginOf returns the variables of loginNames for the commands of a hook.
func (l *Local) loginOf(h *hook.Hook) []string {
	if h.User == nil {
		return l.login
	}
	return appendZone(h.User.Environ(), l.login)
}

// appendZone appends the TZ of another environment, if that has one.
func appendZone(env, other []string) []string {
	if zone, ok := findVariable(other, "TZ"); ok {
		env = append(env, "TZ="+zone)
	}
	return env
}

func findVariable(env []string, name string) (value string, ok bool) {
	for _, entry := range env {
		if value, ok = strings.CutPrefix(entry, name+"="); ok {
			return value, true
		}
	}
	return "", false
}
