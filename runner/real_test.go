package runner_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sallyport/runner"
	"sallyport/runner/hook"
	"sallyport/runner/process"
	"sallyport/runner/store"
)

// local starts every run for the first time.
type local struct{ *process.Local }

func (local) Known(string) (bool, error) { return false, nil }

func openStore(t *testing.T) *store.SQLite {
	t.Helper()
	s, err := store.Open(t.Context(), folder(t, 0o700), time.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestCommands_Real(t *testing.T) {
	dir := folder(t, 0o755)
	witness := filepath.Join(dir, "witness")
	script := filepath.Join(dir, "job")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nset -eu\nprintf '%s|' \"$@\" >\"$WITNESS\"\ncat >>\"$WITNESS\"\nexit 7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(script, 0o755); err != nil {
		t.Fatal(err)
	}
	job := newHook(t, hook.Spec{Command: []string{script, "{x}", "--y={y}"}, Stdin: "body", Env: map[string]string{"WITNESS": witness}}, "x", "y")
	sleep := newHook(t, hook.Spec{Command: []string{"/bin/sleep", "60"}})
	hooks := map[string]*hook.Hook{"job": job, "sleep": sleep}
	job.Name, sleep.Name = "job", "sleep"
	byName := func(name string) (*hook.Hook, bool) { h, ok := hooks[name]; return h, ok }
	log := slog.New(slog.DiscardHandler)
	procs, err := process.NewLocal(folder(t, 0o700), byName, log)
	if err != nil {
		t.Fatal(err)
	}
	r := runner.New(openStore(t), local{procs}, byName, time.Now, log)
	v, problems, err := job.Bind(hook.Input{Body: []byte(`{"x":"$(reboot); \n","y":"--z"}`)})
	if err != nil || len(problems) > 0 {
		t.Fatalf("%v, %v", problems, err)
	}
	s, err := r.Start(t.Context(), runner.Delivery{Hook: job, Values: v, Body: []byte("body")})
	if err != nil {
		t.Fatal(err)
	}
	run := s.Run
	if run, err = r.Wait(t.Context(), run.ID); err != nil || run.State != runner.Failed || run.ExitCode == nil || *run.ExitCode != 7 {
		t.Errorf("got %+v, %v", run, err)
	}
	if got, err := os.ReadFile(witness); err != nil || string(got) != "$(reboot); \n|--y=--z|body" {
		t.Errorf("the command saw %q, %v", got, err)
	}
	if s, err = r.Start(t.Context(), runner.Delivery{Hook: sleep}); err != nil {
		t.Fatal(err)
	}
	_, err = r.Start(t.Context(), runner.Delivery{Hook: sleep})
	busy(t, err, s.Run)
	r.Kill()
	r.Drain(t.Context())
	if run, err = r.Get(t.Context(), s.Run.ID); err != nil || run.State != runner.Cancelled || run.Signal == "" {
		t.Errorf("got %+v, %v", run, err)
	}
}
