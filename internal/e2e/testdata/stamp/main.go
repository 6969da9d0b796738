// Command stamp tells when its first instruction ran, and nothing else: its
// entry point is the one of entry_*.s, not Go's. It is built with
//
//	go build -ldflags '-E entry'
//
// so that make bench needs nothing but Go.
package main

func main() {}
