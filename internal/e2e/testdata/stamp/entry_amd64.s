#include "textflag.h"

// entry writes clock_gettime(CLOCK_MONOTONIC) as it stands in memory, two
// numbers of eight bytes, to stdout, and exits.
TEXT entry(SB), NOSPLIT|NOFRAME, $0
	SUBQ $16, SP
	MOVQ $228, AX // clock_gettime
	MOVQ $1, DI
	MOVQ SP, SI
	SYSCALL
	MOVQ $1, AX // write
	MOVQ $1, DI
	MOVQ SP, SI
	MOVQ $16, DX
	SYSCALL
	MOVQ $231, AX // exit_group
	MOVQ $0, DI
	SYSCALL
