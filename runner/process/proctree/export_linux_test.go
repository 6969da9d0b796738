package proctree

// CgroupHome exports cgroupHome to tests.
var CgroupHome = cgroupHome //nolint:gochecknoglobals // a function
