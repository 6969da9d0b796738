// Package e2e has the tests of the whole program: real TLS, processes, signals, disks and senders. The scripts in
// testdata are what a person could do in a shell; the other tests need what a script cannot say.
//
// The tests run in the top folder of the repository, so their paths start there.
package e2e
