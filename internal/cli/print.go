package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"sallyport/internal/terminal"
	"sallyport/runner"
)

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// outputFormat is how runs are printed.
type outputFormat struct {
	JSON bool `name:"json" help:"Print JSON, for programs."`
}

func (f *outputFormat) printRun(w io.Writer, r runner.Run) error {
	if f.JSON {
		return printJSON(w, struct {
			runner.Run

			Reason string `json:"reason,omitempty"`
		}{r, r.Detail})
	}
	rows := [][2]string{
		{"run", r.ID},
		{"title", r.Title},
		{"hook", r.Hook},
		{"caller", r.Caller},
		{"flight", r.Flight},
		{"state", string(r.State)},
		{"created", formatTime(r.Created)},
		{"started", formatTime(r.Started)},
		{"ended", formatTime(r.Ended)},
		{"took", formatDuration(r)},
		{"exit", formatExit(r)},
		{"error", r.Error},
		{"reason", r.Detail},
		{"output", formatOutputSize(r)},
		{"left behind", formatLeftBehind(r)},
		{"rerun of", r.RerunOf},
		{"retried as", r.Again},
		{"due", formatTime(r.Due)},
		{"stands for", strings.Join(r.StandsFor, ", ")},
	}
	if r.Attempt > 0 {
		rows = append(rows, [2]string{"attempt", strconv.Itoa(r.Attempt)})
	}
	for _, name := range slices.Sorted(maps.Keys(r.Params)) {
		rows = append(rows, [2]string{"param " + name, r.Params[name]})
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, row := range rows {
		if row[1] != "" || strings.HasPrefix(row[0], "param ") {
			_, _ = fmt.Fprintf(t, "%s\t%s\n", row[0], terminal.Quote(row[1]))
		}
	}
	return t.Flush()
}

// formatLeftBehind says how many processes of the command had to be ended after it.
func formatLeftBehind(r runner.Run) string {
	switch r.LeftBehind {
	case 0:
		return ""
	case 1:
		return "1 process, which was ended"
	}
	return fmt.Sprintf("%d processes, which were ended", r.LeftBehind)
}

func formatOutputSize(r runner.Run) string {
	switch {
	case r.Ended.IsZero():
		return ""
	case r.Output.Dropped > 0:
		return fmt.Sprintf("%d bytes, %d of them not kept", r.Output.Bytes, r.Output.Dropped)
	}
	return fmt.Sprintf("%d bytes", r.Output.Bytes)
}
