package process

import (
	"bufio"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
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

// loginEnvironment returns the variables of loginNames for commands. The home, the name and the shell come from the
// entry of the user in /etc/passwd. A user without an entry (in a container, or known to a directory service only)
// gets those of the server's environment, else / and the user id. TZ is that of the server. If the server has no TZ,
// it is not set, and the command uses /etc/localtime.
func loginEnvironment(server []string) []string {
	get := func(name, otherwise string) string {
		i := slices.IndexFunc(server, func(entry string) bool { return strings.HasPrefix(entry, name+"=") })
		if i < 0 {
			return otherwise
		}
		return server[i][len(name)+1:]
	}
	uid := strconv.Itoa(os.Geteuid())
	home, name, shell := get("HOME", "/"), get("USER", uid), get("SHELL", "/bin/sh")
	if u, err := user.LookupId(uid); err == nil {
		home, name = u.HomeDir, u.Username
		shell = passwdShell(name, shell)
	}
	env := []string{"HOME=" + home, "USER=" + name, "LOGNAME=" + name, "SHELL=" + shell}
	const unset = "\x00"
	if tz := get("TZ", unset); tz != unset {
		env = append(env, "TZ="+tz)
	}
	return env
}

// passwdShell returns the shell of a user in /etc/passwd, which os/user does not return. For a user that may not log
// in it returns /bin/sh, because a command cannot use nologin or false as a shell.
func passwdShell(name, otherwise string) string {
	f, err := os.Open("/etc/passwd")
	if err != nil {
		return otherwise
	}
	defer func() { _ = f.Close() }() // only read
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Split(lines.Text(), ":") // passwd(5)
		if len(fields) != 7 || fields[0] != name {
			continue
		}
		if shell := fields[6]; shell != "" && !strings.HasSuffix(shell, "/nologin") &&
			!strings.HasSuffix(shell, "/false") {
			return shell
		}
		return "/bin/sh"
	}
	return otherwise
}
