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
