package hook

import (
	"fmt"
	"math/big"

	"sallyport/internal/strictjson"
)

func (c *param) whyNumberRefused(v string) string {
	if plain, ok := strictjson.PlainDecimal(v); !ok || plain != v {
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
