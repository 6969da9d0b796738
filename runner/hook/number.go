package hook

import (
	"fmt"
	"math/big"
	"regexp"
	"strconv"
	"strings"
)

// maxNumber is the most bytes of a number, before and after it is written in plain decimal.
const maxNumber = 64

var numberForm = regexp.MustCompile(`^(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?(?:[eE]([-+]?[0-9]+))?$`)

// plainDecimal returns a JSON number in its canonical form: plain decimal, without an exponent and without zeros that
// do not count. The exponent is checked before anything of its size is written.
func plainDecimal(text string) (string, bool) {
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

func (c *param) whyNumberRefused(v string) string {
	if plain, ok := plainDecimal(v); !ok || plain != v {
		return "is not a number of at most 64 characters in plain decimal, such as -12.5"
	}
	n, _ := new(big.Rat).SetString(v) // plain decimal is a number
	switch {
	case c.min != nil && n.Cmp(new(big.Rat).SetInt64(*c.min)) < 0:
		return fmt.Sprintf("is below %d", *c.min)
	case c.max != nil && n.Cmp(new(big.Rat).SetInt64(*c.max)) > 0:
		return fmt.Sprintf("is above %d", *c.max)
	}
	return ""
}
