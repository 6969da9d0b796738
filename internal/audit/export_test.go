package audit

import "io"

// Segment verifies the lines of r as those of the only segment of a state folder.
func (v *Verifier) Segment(r io.Reader) error {
	w := v.newWalk()
	w.state = true
	return w.walkSegment(segment{name: "segment", first: 1}, r, true)
}
