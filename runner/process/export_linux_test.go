package process

// LoginEnvironment is loginEnv.
var LoginEnvironment = loginEnv //nolint:gochecknoglobals // a function

// ProcessLimit is processLimit.
var ProcessLimit = processLimit //nolint:gochecknoglobals // a function

// CgroupHome is cgroupHome.
var CgroupHome = cgroupHome //nolint:gochecknoglobals // a function
