package runner

// Transitions returns the transitions of phases, each as "admitted --> ordered".
func Transitions() (all []string) {
	for from := idle; from <= ending; from++ {
		for to := idle; to <= ending; to++ {
			if from.mayBecome(to) {
				all = append(all, from.String()+" --> "+to.String())
			}
		}
	}
	return all
}

// IsInProgress reports whether the runner knows a run of a flight that is ordered or runs.
func (r *Runner) IsInProgress(flight string) bool {
	_, busy := r.runs.findInProgress(flight)
	return busy
}
