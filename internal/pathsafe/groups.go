package pathsafe

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// groups is what decides if a group has other members than the effective user.
type groups struct {
	own    []int  // the groups of this process
	uid    int    // the effective user
	passwd []byte // passwd(5)
	group  []byte // group(5)
	known  bool   // whether no user can come from elsewhere than from these files
}

// readGroups reads the groups of this process, and the users and groups of this machine from /etc.
func readGroups(etc string) *groups {
	own, err := os.Getgroups()
	g := &groups{own: append(own, os.Getegid()), uid: os.Geteuid(), known: err == nil}
	var sources []byte
	for name, content := range map[string]*[]byte{"passwd": &g.passwd, "group": &g.group, "nsswitch.conf": &sources} {
		*content, err = os.ReadFile(filepath.Join(etc, name))
		g.known = g.known && (err == nil || errors.Is(err, fs.ErrNotExist)) // an image needs none of them
	}
	for line := range strings.Lines(string(sources)) { // nsswitch.conf(5)
		line, _, _ = strings.Cut(line, "#")
		database, from, _ := strings.Cut(strings.TrimSpace(line), ":")
		if slices.Contains([]string{"passwd", "group", "initgroups"}, database) && strings.TrimSpace(from) != "files" {
			g.known = false
		}
	}
	return g
}

// admitsOthers reports whether a mode gives one of the bits to others, or to a group that other users may be in.
func (g *groups) admitsOthers(path string, info fs.FileInfo, bits fs.FileMode) bool {
	given := info.Mode().Perm() & bits
	if given&0o070 == 0 || given&0o007 != 0 {
		return given != 0
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return !ok || !g.isPrivate(int(stat.Gid)) || mayHaveACL(path)
}

// isPrivate reports whether a group is one of this process, and certainly no other user is in it: users come from
// the files in /etc alone, and by these the group is the primary group of no other user and has no other member. Then
// only root can give the group to another process, and root can do everything anyway.
func (g *groups) isPrivate(gid int) bool {
	if !g.known || !slices.Contains(g.own, gid) {
		return false
	}
	var names []string // of the effective user
	for line := range strings.Lines(string(g.passwd)) {
		switch f := strings.Split(strings.TrimSpace(line), ":"); {
		case len(f) < 4:
		case f[2] == strconv.Itoa(g.uid):
			names = append(names, f[0])
		case f[3] == strconv.Itoa(gid):
			return false
		}
	}
	for line := range strings.Lines(string(g.group)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 4 || f[2] != strconv.Itoa(gid) {
			continue
		}
		for member := range strings.SplitSeq(f[3], ",") {
			if member != "" && !slices.Contains(names, member) {
				return false
			}
		}
	}
	return true
}
