package diag_test

import (
	"fmt"
	"strings"

	"sallyport/internal/diag"
)

// Each check gets the list of its place, and adds what it finds. No check needs the result of another.
func ExampleList() {
	var problems diag.List
	hook := problems.At("hooks", "deploy")
	hook.At("command").Index(0).Errorf("%q is not an absolute path", "deploy.sh")
	hook.At("timeout").Warnf("is longer than a day")
	for _, p := range problems.All() {
		fmt.Println(strings.Join(p.Path, "."), p.Text, p.Warning)
	}
	fmt.Println("the server does not start:", problems.Bad())
	// Output:
	// hooks.deploy.command.0 "deploy.sh" is not an absolute path false
	// hooks.deploy.timeout is longer than a day true
	// the server does not start: true
}
