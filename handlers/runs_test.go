package handlers_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"sallyport/runner"
)

// TestRuns_Paging: the links to the next page lead through all runs once.
func TestRuns_Paging(t *testing.T) {
	t.Parallel()
	h := newScribe(t, "")
	var want []string
	for i := range 7 {
		run := h.begin(fmt.Sprint(i))
		h.stands(run, runner.Succeeded)
		want = append([]string{run.ID}, want...)
	}
	var got []string
	pages := 0
	for next := "/runs?limit=3&hook=start"; next != ""; pages++ {
		var page struct {
			Runs []runner.Run
			Next string
		}
		if err := json.Unmarshal([]byte(h.answers(http.StatusOK, h.get(next)).body), &page); err != nil {
			t.Fatal(err)
		}
		for _, run := range page.Runs {
			got = append(got, run.ID)
		}
		next = page.Next
	}
	if !slices.Equal(got, want) || pages != 3 {
		t.Errorf("on %d pages: %v, want %v", pages, got, want)
	}
}

// TestRuns_UnreadableStore: a store that cannot be read is unavailable.
func TestRuns_UnreadableStore(t *testing.T) {
	t.Parallel()
	h := newScribe(t, "")
	run := h.begin("1")
	h.stands(run, runner.Succeeded)
	h.record.broken.Store(true)
	defer h.record.broken.Store(false)
	for _, path := range []string{"/runs", "/runs/" + run.ID, "/runs/" + run.ID + "/output?follow"} {
		if a := h.answers(http.StatusServiceUnavailable, h.get(path)); !strings.Contains(a.body, "urn:sallyport:unavailable") {
			t.Errorf("%s: %s", path, a.body)
		}
	}
}
