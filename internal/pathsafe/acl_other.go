//go:build !linux

package pathsafe

// mayHaveACL reports whether a file may have an access control list, which is not known here.
func mayHaveACL(string) bool { return true }
