package proctree

// CgroupHome is cgroupHome.
var CgroupHome = cgroupHome //nolint:gochecknoglobals // a function
