package pathsafe

import "io/fs"

// AdmitsOthers reports whether a mode gives one of the bits to other users, by the users and groups in a folder.
func AdmitsOthers(etc, path string, info fs.FileInfo, bits fs.FileMode) bool {
	return readGroups(etc).admitsOthers(path, info, bits)
}
