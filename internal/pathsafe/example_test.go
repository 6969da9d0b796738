package pathsafe_test

import (
	"fmt"
	"os"
	"path/filepath"

	"sallyport/internal/pathsafe"
)

// A key that others can read is reported, and so is every folder on its path that others can write to. The caller
// decides whether it uses the content.
func ExampleReadTrusted() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir) //nolint:errcheck // of a temporary folder
	name := filepath.Join(dir, "key")
	if err := pathsafe.ReplaceFileAt(name, []byte("secret"), 0o644); err != nil {
		fmt.Println(err)
		return
	}
	content, faults, err := pathsafe.ReadTrusted(name, "the key", 1024, 0o077)
	fmt.Printf("%q %v\n%s\n", content, err, faults[0])
	// Output:
	// "secret" <nil>
	// the key may be read by its group or by others (its mode is 0644): chmod 0600
}
