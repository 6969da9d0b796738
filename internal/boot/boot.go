// Package boot tells one start of the machine from another. After a restart no process of before is left, and
// what had not been synced to the disk may be lost.
package boot
