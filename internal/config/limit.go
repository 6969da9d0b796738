package config

import (
	"fmt"
	"math"
	"regexp"
	"strconv"

	"sallyport/internal/diag"
)

// The most that a limit may be. What is larger is a slip of the pen.
const (
	maxEvents = 1_000_000
	maxCount  = 1_000_000
)

// Limit is a token bucket: it fills at Rate, holds Burst, and every request
// takes one token.
type Limit struct {
	Rate  Rate `yaml:"rate"`
	Burst int  `yaml:"burst"`
}

// orDefault fills in what is not written.
func (l Limit) orDefault(def Limit) Limit {
	if l.Rate == 0 {
		l.Rate = def.Rate
	}
	if l.Burst == 0 {
		l.Burst = def.Burst
	}
	return l
}

func (l Limit) checkBurst(p *diag.List) { checkCount(l.Burst, p.At("burst")) }

func (l Limit) String() string { return fmt.Sprintf("%s, burst %d", l.Rate, l.Burst) }

func (l *Limits) checkLimits(p *diag.List) {
	l.Address.checkBurst(p.At("address"))
	l.Failures.checkBurst(p.At("failures"))
	l.Caller.checkBurst(p.At("caller"))
	checkCount(l.Connections, p.At("connections"))
	checkCount(l.ConnectionsPerAddress, p.At("connections_per_address"))
}

func checkCount(n int, p *diag.List) {
	if n < 1 || n > maxCount {
		p.Errorf("%d is not between 1 and %d", n, maxCount)
	}
}

// Rate is a number of events per second. It is written 20/s, 6/m or 100/h.
type Rate float64

var rateForm = regexp.MustCompile(`^([1-9][0-9]{0,6})/([smh])$`)

// UnmarshalText reads the forms above, up to a million events per unit.
func (r *Rate) UnmarshalText(text []byte) error {
	parts := rateForm.FindStringSubmatch(string(text))
	if parts == nil {
		return fmt.Errorf("%q is not a rate: write 20/s, 6/m or 100/h", text)
	}
	n, err := strconv.Atoi(parts[1])
	if err != nil || n > maxEvents {
		return fmt.Errorf("%q is over %d", text, maxEvents)
	}
	*r = Rate(float64(n) / map[string]float64{"s": 1, "m": 60, "h": 3600}[parts[2]])
	return nil
}

// String returns the rate in the largest number of whole events that it is.
func (r Rate) String() string {
	for _, unit := range []struct {
		name    string
		seconds float64
	}{{"s", 1}, {"m", 60}} {
		n := float64(r) * unit.seconds
		if whole := math.Round(n); whole > 0 && math.Abs(n-whole) < 1e-9*whole {
			return fmt.Sprintf("%.0f/%s", whole, unit.name)
		}
	}
	return fmt.Sprintf("%.0f/h", float64(r)*3600)
}
