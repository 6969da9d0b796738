// Package boot identifies each start of the machine ([ID]), and the time since then ([Uptime]). After a restart, no
// process of an earlier start exists, and data that was not synced to the disk may be lost.
//
// Uptime does not depend on the wall clock. On a system without an id, ID is empty, and a restart is not noticed.
package boot
