package handlers

import (
	"hash/maphash"
	"time"

	"golang.org/x/time/rate"
)

// slotTable is a table of fixed size for any number of keys: a seeded hash gives each key its slot. Keys with the same
// hash share a slot. Without the seed, a sender cannot choose which keys these are.
type slotTable[K comparable, V any] struct {
	seed  maphash.Seed
	slots []V
}

func newSlotTable[K comparable, V any](size int) *slotTable[K, V] {
	return &slotTable[K, V]{seed: maphash.MakeSeed(), slots: make([]V, size)}
}

func (t *slotTable[K, V]) slotOf(key K) *V {
	return &t.slots[maphash.Comparable(t.seed, key)%uint64(len(t.slots))]
}

// newLimiterTable returns a table of limiters. It initializes every slot before the table is used: two concurrent
// requests that initialized the same slot would give it a second full bucket.
func newLimiterTable[K comparable](size int, limit rate.Limit, burst int) *slotTable[K, rate.Limiter] {
	t := newSlotTable[K, rate.Limiter](size)
	for i := range t.slots {
		// With the zero time, the first use finds a full bucket.
		t.slots[i].SetLimitAt(time.Time{}, limit)
		t.slots[i].SetBurstAt(time.Time{}, burst)
	}
	return t
}
