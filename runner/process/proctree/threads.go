package proctree

import (
	"runtime"
	"sync"
)

// SpareThreads is how many threads the server and the supervisor create in advance. Neither has that many blocking
// system calls at the same time.
const SpareThreads = 32

// MakeThreads creates n threads and leaves them to the runtime, which keeps them until it needs one. The runtime ends
// the process when the system refuses it a thread. The system does that while a command that forks without end is at
// the process limit that they share.
func MakeThreads(n int) {
	var made, done sync.WaitGroup
	release := make(chan struct{})
	for range n {
		made.Add(1)
		done.Go(func() {
			runtime.LockOSThread() // while each goroutine keeps its thread, the next one needs another
			made.Done()
			<-release
			runtime.UnlockOSThread()
		})
	}
	made.Wait()
	close(release)
	done.Wait()
}
