// Package boot identifies each start of the machine. After a restart, no process of an earlier start exists, and data
// that was not synced to the disk may be lost.
package boot
