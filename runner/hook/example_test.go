package hook_test

import (
	"fmt"
	"net/url"

	"sallyport/internal/diag"
	"sallyport/runner/hook"
)

// A hook is compiled once. A delivery is bound to values, and the values become arguments, one for each hole.
func Example() {
	var problems diag.List
	hooks := hook.Compile(map[string]*hook.Spec{"report": {
		Callers: []hook.Grant{{Caller: "etl"}},
		Command: []string{"/bin/echo", "--day={day}", "{region}"},
		Params: map[string]hook.ParamSpec{
			"day":    {From: hook.From{"body", "day"}, Match: `\d{4}-\d{2}-\d{2}`},
			"region": {From: hook.From{"query", "region"}, Enum: []string{"eu", "us"}},
		},
		Flight: hook.FlightSpec{Key: "{region}"},
	}}, []string{"etl"}, &problems)
	if problems.Bad() {
		fmt.Println(problems.All())
		return
	}
	report := hooks["report"]

	values, refused, err := report.Bind(hook.Input{
		Body: []byte(`{"day": "2026-11-01"}`), Query: url.Values{"region": {"eu"}},
	})
	fmt.Println(values, refused, err)
	argv, err := report.Argv(values)
	fmt.Printf("%q %v\n", argv, err)
	fmt.Println("flight:", report.Flight(values))

	_, refused, err = report.Bind(hook.Input{Body: []byte(`{"day": "today; reboot"}`)})
	fmt.Println(refused, err)
	// Output:
	// map[day:2026-11-01 region:eu] [] <nil>
	// ["/bin/echo" "--day=2026-11-01" "eu"] <nil>
	// flight: report/eu
	// [{day does not match the allowed pattern} {region is missing: no query.region}] <nil>
}
