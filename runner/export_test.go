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
