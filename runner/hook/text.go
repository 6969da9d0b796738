package hook

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Size is a number of bytes, at least one: 4096, 64KiB, 10MiB, 1GiB, or 10kB, 10MB, 1GB. Zero is refused, because a
// Spec uses it for the default.
type Size int64

// UnmarshalText parses a size.
func (s *Size) UnmarshalText(text []byte) error {
	digits := strings.TrimRight(string(text), "kKMGiB")
	units := map[string]uint64{
		"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9,
	}
	unit, known := units[string(text)[len(digits):]]
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil || !known || n == 0 || n > math.MaxInt64/unit {
		return fmt.Errorf("%q is not a size: write 4096, 64KiB or 10MB", text)
	}
	*s = Size(n * unit) //nolint:gosec // G115: at most MaxInt64, by the line above
	return nil
}

func (s Size) String() string {
	for _, u := range []struct {
		name string
		size Size
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if s >= u.size && s%u.size == 0 {
			return strconv.FormatInt(int64(s/u.size), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// From is the source of a parameter: the part of the request, then the path within it. It is written as
// body.head_commit.id, or as a list if a name contains dots: [claim, kubernetes.io, namespace].
type From []string

// UnmarshalYAML reads both forms.
func (f *From) UnmarshalYAML(decode func(any) error) error {
	var list []string
	if decode(&list) == nil {
		*f = list
		return nil
	}
	var dotted string
	if err := decode(&dotted); err != nil {
		return err
	}
	*f = strings.Split(dotted, ".")
	return nil
}

func (f From) String() string { return strings.Join(f, ".") }

// checkForm returns an error if f is not a valid source.
func (f From) checkForm() error {
	if len(f) == 0 {
		return fmt.Errorf("does not say where the value comes from: body, query, header or claim, as in body.date")
	}
	for _, key := range f {
		if key == "" {
			return fmt.Errorf("%q has an empty name", f.String())
		}
	}
	switch f[0] {
	case "body", "claim":
		if len(f) < 2 {
			return fmt.Errorf("%q names no member of the %s", f.String(), f[0])
		}
	case "query", "header":
		if len(f) != 2 {
			return fmt.Errorf("%q: a %s has one name, write [%s, %q] if it has dots", f.String(), f[0], f[0],
				strings.Join(f[1:], "."))
		}
	default:
		return fmt.Errorf("%q is not a source: write body, query, header or claim", f[0])
	}
	return nil
}
