package process_test

import (
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sallyport/runner/process"
)

// TestLoginEnvironment_UserFirst checks that the login variables are those of the user, or else those of the server.
func TestLoginEnvironment_UserFirst(t *testing.T) {
	if env := process.LoginEnv(func(name string) (string, bool) { return "a " + name, name == "TZ" || name == "SECRET" }); !slices.Equal(env, []string{"TZ=a TZ"}) {
		t.Errorf("the supervisor gets %q", env)
	}
	server := []string{"HOME=/elsewhere", "USER=other", "SHELL=/bin/zsh"}
	out, err := exec.CommandContext(t.Context(), "getent", "passwd", strconv.Itoa(os.Geteuid())).Output()
	want := []string{"HOME=/elsewhere", "USER=other", "LOGNAME=other", "SHELL=/bin/zsh"}
	if err == nil { // else the user has no entry
		entry := strings.Split(strings.TrimSpace(string(out)), ":")
		shell := entry[6]
		if strings.HasSuffix(shell, "nologin") || strings.HasSuffix(shell, "false") || shell == "" {
			shell = "/bin/sh"
		}
		want = []string{"HOME=" + entry[5], "USER=" + entry[0], "LOGNAME=" + entry[0], "SHELL=" + shell}
	}
	if got := process.LoginEnvironment(server); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for zone, want := range map[string]string{"TZ=Europe/Berlin": "TZ=Europe/Berlin", "TZ=": "TZ="} {
		if got := process.LoginEnvironment([]string{zone}); got[len(got)-1] != want {
			t.Errorf("with %q: %q", zone, got)
		}
	}
	if got := process.LoginEnvironment(nil); len(got) != 4 {
		t.Errorf("without a TZ of the server: %q", got)
	}
}
