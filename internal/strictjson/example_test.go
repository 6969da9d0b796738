package strictjson_test

import (
	"fmt"

	"sallyport/internal/strictjson"
)

// What two readers could understand differently is an error.
func ExampleDecode() {
	value, err := strictjson.Decode([]byte(`{"after": "c0ffee1", "count": 12345678901234567890}`))
	fmt.Println(value, err)
	for _, text := range []string{`{"ref": "main", "ref": "prod"}`, `{"ref": "main"} {}`, `"\ud800"`} {
		_, err := strictjson.Decode([]byte(text))
		fmt.Println(err)
	}
	// Output:
	// map[after:c0ffee1 count:12345678901234567890] <nil>
	// the name "ref" occurs twice in one object
	// something follows the JSON value
	// an escape is half of a surrogate pair
}

// A missing key and null are the same: there is no value.
func ExampleLookup() {
	value, err := strictjson.Decode([]byte(`{"push": {"ref": "refs/heads/main", "base": null}}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, path := range [][]string{{"push", "ref"}, {"push", "base"}, {"push", "ref", "name"}} {
		fmt.Println(strictjson.Lookup(value, path...))
	}
	// Output:
	// refs/heads/main true
	// <nil> false
	// <nil> false
}
