package proctree

import (
	"runtime"
	"sync"
)

// SpareThreads is how many threads the server and the supervisor make ahead.
// Neither has that many calls to the kernel that block at once.
const SpareThreads = 32

// MakeThreads makes n threads and leaves them to the runtime, which keeps them
// for when it needs one. The runtime ends the process when the system refuses it a
// thread, and the system does so while a command that forks without end is at the
// limit of processes that all of them share.
func MakeThreads(n int) {
	var made, done sync.WaitGroup
	release := make(chan struct{})
	for range n {
		made.Add(1)
		done.Go(func() {
			runtime.LockOSThread() // as long as each goroutine keeps a thread, the next needs another
			made.Done()
			<-release
			runtime.UnlockOSThread()
		})
	}
	made.Wait()
	close(release)
	done.Wait()
}
