package strictjson

import (
	"regexp"
	"strconv"
	"strings"
)

// maxNumber is the most bytes of a number, before and after it is written in plain decimal.
const maxNumber = 64

var numberForm = regexp.MustCompile(`^(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?(?:[eE]([-+]?[0-9]+))?$`)

// PlainDecimal returns a JSON number in its canonical form: plain decimal, without an exponent and without zeros that
// do not count. It reports false for a text that is not a number, and for a number of more than 64 characters. The
// exponent is checked before anything of its size is written.
func PlainDecimal(text string) (string, bool) {
	parts := numberForm.FindStringSubmatch(text[:min(len(text), maxNumber+1)])
	if parts == nil || len(text) > maxNumber {
		return "", false
	}
	exponent := 0
	if parts[4] != "" {
		var err error
		if exponent, err = strconv.Atoi(parts[4]); err != nil || exponent < -2*maxNumber || exponent > 2*maxNumber {
			return "", false
		}
	}
	digits := strings.TrimRight(parts[2]+parts[3], "0")
	point := len(parts[2]) + exponent // its place in digits
	trimmed := strings.TrimLeft(digits, "0")
	point -= len(digits) - len(trimmed)
	if trimmed == "" {
		return "0", true
	}
	number := parts[1]
	switch {
	case point <= 0:
		number += "0." + strings.Repeat("0", -point) + trimmed
	case point >= len(trimmed):
		number += trimmed + strings.Repeat("0", point-len(trimmed))
	default:
		number += trimmed[:point] + "." + trimmed[point:]
	}
	return number, len(number) <= maxNumber
}
