#include "textflag.h"

// entry is that of entry_amd64.s.
TEXT entry(SB), NOSPLIT|NOFRAME, $0
	SUB $16, RSP
	MOVD $113, R8 // clock_gettime
	MOVD $1, R0
	MOVD RSP, R1
	SVC
	MOVD $64, R8 // write
	MOVD $1, R0
	MOVD RSP, R1
	MOVD $16, R2
	SVC
	MOVD $94, R8 // exit_group
	MOVD $0, R0
	SVC
