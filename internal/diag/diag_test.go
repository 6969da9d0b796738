package diag_test

import (
	"reflect"
	"testing"

	"sallyport/internal/diag"
)

func TestList_SharedByPlaces(t *testing.T) {
	var l diag.List
	if l.Bad() || l.All() != nil {
		t.Fatal("an empty list has problems")
	}
	hooks := l.At("hooks")
	a, b := hooks.At("a", "command"), hooks.At("b")
	b.Warnf("is %s", "odd")
	if l.Bad() {
		t.Error("a warning keeps the server from starting")
	}
	a.Index(2).Errorf("is bad")
	l.Errorf("and so is all")
	want := []diag.Problem{
		{Path: []string{"hooks", "b"}, Text: "is odd", Warning: true},
		{Path: []string{"hooks", "a", "command", "2"}, Text: "is bad"},
		{Text: "and so is all"},
	}
	if got := l.All(); !reflect.DeepEqual(got, want) || !l.Bad() {
		t.Errorf("got %v", got)
	}
}
