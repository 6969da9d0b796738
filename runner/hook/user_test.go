package hook_test

import (
	"os"
	"strings"
	"testing"

	"sallyport/internal/testenv"
	"sallyport/runner/hook"
)

// TestUser_Refused: a user or a group that does not exist, a home that does not exist, and groups without a user are
// refused at their place.
func TestUser_Refused(t *testing.T) {
	if os.Geteuid() != 0 {
		testenv.Skip(t, "users of hooks: only root may start commands as another user")
	}
	command := []string{"/bin/true"}
	for _, c := range []struct {
		spec        hook.Spec
		path, words string
	}{
		{hook.Spec{User: "no-such-user"}, "user", "unknown user no-such-user"},
		{hook.Spec{User: "4000000001"}, "user", "unknown"},
		{hook.Spec{User: "nobody"}, "user", "does not exist: write dir"},
		{hook.Spec{User: "daemon", Groups: []string{"mail", "no-such-group"}}, "groups.1", "no-such-group"},
		{hook.Spec{User: "daemon", Groups: []string{"mail", "8"}}, "groups.1", "listed twice"},
		{hook.Spec{Groups: []string{"mail"}}, "groups", "write user, too"},
	} {
		c.spec.Command = command
		_, problems := compile(c.spec)
		refuse(t, problems, c.path, c.words)
	}
	private := t.TempDir()
	if err := os.Chmod(private, 0o700); err != nil {
		t.Fatal(err)
	}
	_, problems := compile(hook.Spec{User: "daemon", Dir: private, Command: command})
	if len(problems) == 0 || !strings.Contains(problems[len(problems)-1].Text, "may not enter or execute "+private) {
		t.Errorf("a folder that the user may not enter: %v", problems)
	}
	if h := newHook(t, hook.Spec{User: "nobody", Dir: "/", Command: command}); h.User.UID != 65534 || h.Dir != "/" {
		t.Errorf("%+v", h.User)
	}
}
