package expression_test

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"sallyport/runner/hook/expression"
)

// nestLevels returns levels of comprehensions, each of which binds the next name to step, with the name before as %[1]s.
func nestLevels(levels int, first, step, inner string) string {
	name, text := first, ""
	for i := range levels {
		next := fmt.Sprintf("v%d", i)
		text += fmt.Sprintf("["+step+"].exists("+next+", ", name)
		name = next
	}
	return text + fmt.Sprintf(inner, name) + strings.Repeat(")", levels)
}

// TestExplain_Bombs evaluates expressions that take long or much memory for some deliveries: each ends, at the limit or
// with a result. The figures are logged.
func TestExplain_Bombs(t *testing.T) {
	const elements = 100_000
	from := delivery(t, `{"l":[`+strings.Repeat(`{"a":[1,2]},`, elements)+`1],"s":"`+strings.Repeat("ab", 1<<19)+`",
		"number":`+strings.Repeat("9", 1<<20)+`,"deep":`+strings.Repeat("[", 60)+strings.Repeat("]", 60)+`,
		"o":{`+manyMembers(elements)+`}}`)
	times := func(n int, text string) string { return strings.TrimSuffix(strings.Repeat(text+",", n), ",") }
	limited := map[string]string{
		"three loops":          `body.l.all(a, body.l.all(b, body.l.all(c, true)))`,
		"two loops, map":       `body.l.map(a, body.l.map(b, [a, b])).size() > 0`,
		"text doubled":         nestLevels(60, "body.s", "%[1]s + %[1]s", "size(%s) > 0"),
		"text doubled in map":  `body.l.map(a, body.s + body.s).size() > 0`,
		"list doubled, equal":  nestLevels(60, "body.l", "%[1]s + %[1]s", "%[1]s == %[1]s"),
		"list doubled, in":     nestLevels(60, "body.l", "%[1]s + %[1]s", "3 in %s"),
		"list doubled, loop":   nestLevels(60, "body.l", "%[1]s + %[1]s", "%s.all(x, true)"),
		"list in itself":       nestLevels(60, "body.l", "["+times(10, "%[1]s")+"]", "%[1]s == %[1]s"),
		"body equal in a loop": `body.l.all(a, body == body)`,
		"object in a loop":     `body.l.all(a, body.o.exists(k, true))`,
		"regular expression":   `body.l.all(a, !body.s.matches("(a|b|ab)*c"))`,
		"split":                `body.l.all(a, body.s.split("").size() > 0)`,
		"replace":              `body.l.all(a, body.s.replace("ab", "ba").size() > 0)`,
		"long number":          `body.l.all(a, body.number == 1 || true) && body.l.all(a, int(body.s) == 1 || true)`,
		"long name":            `body.l.all(a, body.l.all(b, !(body.s in body.o)))`,
		"size of a text":       `body.l.all(a, size(body.s) > 0)`,
	}
	for name, text := range limited {
		t.Run(name, func(t *testing.T) { checkLimited(t, text, from) })
	}
	for text, want := range map[string]string{
		`body.l.all(a, a != 3)`:                                   "",
		`body.s.replace("", body.s).size() > 0`:                   "the result of replace is longer than 1048576 bytes",
		`body.deep == body.deep && body.number != 1`:              "the value is a number that cannot be represented exactly",
		`body.deep` + strings.Repeat("[0]", 60) + ` == body.deep`: "index out of bounds: 0",
	} {
		if _, why, err := compileCondition(t, text).Explain(from); why != want || err != nil {
			t.Errorf("%s: got %q, %v, want %q", text, why, err, want)
		}
	}
}

// checkLimited evaluates an expression, which must exceed the limit.
func checkLimited(t *testing.T, text string, from expression.Variables) {
	t.Helper()
	e := compileCondition(t, text)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	started := time.Now()
	_, why, err := e.Explain(from)
	took := time.Since(started)
	runtime.ReadMemStats(&after)
	t.Logf("%d ms, %d MiB allocated", took.Milliseconds(), (after.TotalAlloc-before.TotalAlloc)>>20)
	if !errors.Is(err, expression.ErrLimit) {
		t.Errorf("got %q, %v, want the limit", why, err)
	}
}

func manyMembers(n int) string {
	var b strings.Builder
	for i := range n {
		_, _ = fmt.Fprintf(&b, `"m%d":%d,`, i, i)
	}
	return strings.TrimSuffix(b.String(), ",")
}

// TestJSON_Bomb stops a result that contains a list many times, before it is written.
func TestJSON_Bomb(t *testing.T) {
	text := "body.s"
	for range 8 {
		text = "[" + text + "].map(x, [" + strings.TrimSuffix(strings.Repeat("x,", 30), ",") + "])"
	}
	e, problems := expression.CompileValue(text, "list")
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if _, err := e.JSON(delivery(t, `{"s":"x"}`), 64<<10); err == nil || err.Error() != "the compact text is too long" {
		t.Errorf("got %v", err)
	}
}

// FuzzCompile compiles and evaluates any expression on any body. Nothing takes long, and a program does not panic.
func FuzzCompile(f *testing.F) {
	for _, text := range []string{
		`event == "push" && body.commits.exists(c, c.modified.exists(f, f.startsWith("docs/")))`,
		`body.l.map(a, body.l.map(b, a + b)) == body.l`, `[[1]+[2]] == [[1, 2.0]] ? {"a": 1}.a : body.x[0]`,
		`body.s.replace("", body.s).split("a")[1].substring(1, 2).lowerAscii().matches("a*")`,
		`header["x"] == query.x || has(claims.a.b) || -9223372036854775808 / -1 > 1u`, "b'x' == r'''\n'''",
	} {
		f.Add(text, push)
	}
	f.Fuzz(func(t *testing.T, text, body string) {
		if len(body) > 10_000 {
			return
		}
		e, _ := expression.CompileCondition(text)
		v, _ := expression.CompileValue(text, "string", "int", "double", "bool", "list", "map")
		if decoded, err := decode(body); err == nil {
			if e != nil {
				operand, _, err := e.Explain(decoded)
				if again, _, other := e.Explain(decoded); again != operand && err == nil && other == nil {
					t.Errorf("%q is %q and %q", text, operand, again)
				}
			}
			if v != nil {
				_, _ = v.Scalar(decoded)
				if text, err := v.JSON(decoded, 1000); err == nil && len(text) > 12_000 {
					t.Errorf("%d bytes", len(text))
				}
			}
		}
	})
}

const benchmarkCondition = `event == "push" && body.commits.exists(c, c.modified.exists(f, f.startsWith("docs/")))`

func BenchmarkExplain(b *testing.B) {
	from := delivery(b, push)
	e := compileCondition(b, benchmarkCondition)
	for b.Loop() {
		if operand, why, err := e.Explain(from); operand != "" || err != nil {
			b.Fatal(operand, why, err)
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	for b.Loop() {
		compileCondition(b, benchmarkCondition)
	}
}
