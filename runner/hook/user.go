package hook

import (
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"sallyport/internal/account"
	"sallyport/internal/diag"
	"sallyport/internal/pathsafe"
)

// resolveUser looks up the user and the groups as which the command runs, and checks that this machine can run it so.
func (h *Hook) resolveUser(p *diag.List) {
	s := h.spec
	if s.User == "" {
		if s.Groups != nil {
			p.At("groups").Errorf("are those of a user: write user, too")
		}
		return
	}
	at := p.At("user")
	u, err := account.Find(s.User)
	if err != nil {
		at.Errorf("%v", err)
		return
	}
	if s.Groups != nil {
		u.Groups = resolveGroups(s.Groups, p.At("groups"))
	}
	if int(u.UID) != os.Geteuid() || s.Groups != nil {
		h.User = u
		if err := account.CheckSwitch(); err != nil {
			at.Errorf("the command cannot run as %s: %v", u.Name, err)
		}
	}
	if h.Dir == "" {
		h.Dir = u.Home
		if !isFolder(h.Dir) {
			at.Errorf("the home of %s, %s, does not exist: write dir, the working directory of the command", u.Name, h.Dir)
			return
		}
	}
	if h.User == nil {
		return
	}
	warnOfAccess(u, h.Dir, p.At("dir"))
	if program := s.Command; len(program) > 0 && strings.HasPrefix(program[0], "/") {
		warnOfAccess(u, program[0], p.At("command").Index(0))
	}
}

func resolveGroups(names []string, p *diag.List) []uint32 {
	groups := []uint32{} // an empty list is none, not the groups of the server
	for i, name := range names {
		id, err := account.FindGroup(name)
		if err != nil {
			p.Index(i).Errorf("%v", err)
			continue
		}
		if slices.Contains(groups, id) {
			p.Index(i).Errorf("%q is listed twice", name)
		}
		groups = append(groups, id)
	}
	return groups
}

// warnOfAccess warns of each part of a path that a user may not enter or execute according to its mode. An
// access control list may permit more, so it is not an error.
func warnOfAccess(u *account.Account, name string, p *diag.List) {
	way, err := pathsafe.ResolvePath(name)
	if err != nil {
		return // another check reports that
	}
	for _, part := range way {
		if part.Mode().Type() != fs.ModeSymlink && !mayExecute(u, part) {
			p.Warnf("the user %s may not enter or execute %s (mode %04o)", u.Name, part.Path, part.Mode().Perm())
		}
	}
}

func mayExecute(u *account.Account, info os.FileInfo) bool {
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok || u.UID == 0 {
		return true
	}
	var bit fs.FileMode = 0o001
	switch {
	case owner.Uid == u.UID:
		bit = 0o100
	case owner.Gid == u.GID || slices.Contains(u.Groups, owner.Gid):
		bit = 0o010
	}
	return info.Mode()&bit != 0
}
