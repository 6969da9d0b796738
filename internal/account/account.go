// Package account reads the users of this machine, as which commands run: [Find] looks one up with its groups, and
// [CheckSwitch] says whether this process can start a command as another user.
package account

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"
)

var errNotRoot = errors.New("only root can start a process as another user, and this process does not run as root")

// Account is a user of this machine.
type Account struct {
	Name     string
	UID, GID uint32
	Groups   []uint32 // the supplementary groups, besides GID
	Home     string   // as in the user database, which does not say that it exists
	Shell    string   // /bin/sh for a user who may not log in; empty for a user without an entry in /etc/passwd
}

// Find returns a user by name, or by number if it has an entry in the user database, with its groups.
func Find(name string) (*Account, error) {
	u, err := user.Lookup(name)
	if _, isNumber := strconv.ParseUint(name, 10, 32); err != nil && isNumber == nil {
		u, err = user.LookupId(name)
	}
	if err != nil {
		return nil, fmt.Errorf("finding the user %s: %w", name, err)
	}
	a := &Account{Name: u.Username, Home: u.HomeDir, Shell: readShell(u.Username)}
	if a.UID, err = parseID(u.Uid); err != nil {
		return nil, fmt.Errorf("finding the user %s: %w", name, err)
	}
	if a.GID, err = parseID(u.Gid); err != nil {
		return nil, fmt.Errorf("finding the user %s: %w", name, err)
	}
	groups, err := u.GroupIds()
	if err != nil {
		return nil, fmt.Errorf("finding the groups of the user %s: %w", name, err)
	}
	for _, written := range groups {
		id, err := parseID(written)
		if err != nil {
			return nil, fmt.Errorf("finding the groups of the user %s: %w", name, err)
		}
		if id != a.GID {
			a.Groups = append(a.Groups, id)
		}
	}
	return a, nil
}

// FindGroup returns the number of a group by its name, or by its number if it has an entry in the group database.
func FindGroup(name string) (uint32, error) {
	g, err := user.LookupGroup(name)
	if _, isNumber := strconv.ParseUint(name, 10, 32); err != nil && isNumber == nil {
		g, err = user.LookupGroupId(name)
	}
	if err != nil {
		return 0, fmt.Errorf("finding the group %s: %w", name, err)
	}
	return parseID(g.Gid)
}

func parseID(text string) (uint32, error) {
	id, err := strconv.ParseUint(text, 10, 32)
	return uint32(id), err
}

// Environ returns the variables that describe the user to a command: HOME, USER, LOGNAME and SHELL.
func (a *Account) Environ() []string {
	return []string{"HOME=" + a.Home, "USER=" + a.Name, "LOGNAME=" + a.Name, "SHELL=" + cmp.Or(a.Shell, noLoginShell)}
}

// noLoginShell is the shell of a user who may not log in, because a command cannot use nologin or false as a shell.
const noLoginShell = "/bin/sh"

// readShell returns the shell of a user in /etc/passwd, which os/user does not return.
func readShell(name string) string {
	f, err := os.Open("/etc/passwd")
	if err != nil {
		return ""
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
		return noLoginShell
	}
	return ""
}
