# What people do with sallyport. It needs a Debian with apt, Go and make;
# everything else it fetches itself, at versions that are written down.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL: # a recipe is one script, which ends at its first error
.DEFAULT_GOAL := help
.PHONY: help run build test lint fmt vuln fips cross crash stress attack fuzz bench clean tools secrets

VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null)
FUZZTIME ?= 10s
CRASHES  ?= 200
STRESS   ?= 60m
ATTACK   ?= 20s
TOOL     := go tool -modfile=.ci/tools/go.mod
NPM      := $(patsubst %/package.json,%/node_modules/.package-lock.json,$(wildcard internal/e2e/testdata/*/package.json))
PEBBLE   := bin/test/pebble bin/test/pebble-challtestsrv

# No test is skipped because it takes long, and none because a tool is missing.
export TESTS := all

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s  %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: build secrets ## serve examples/sallyport.yaml at https://localhost:8443
	bin/sallyport certs dev --dir certs --renew
	exec bin/sallyport serve --config examples/sallyport.yaml

build: ## build bin/sallyport: static, no cgo
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)' -o bin/sallyport .

test: tools $(NPM) $(PEBBLE) ## install what the tests need and pass them all, with the race detector
	@export NOT_CHECKED=$$(mktemp) # a test that cannot be had here says so in it
	trap 'cat "$$NOT_CHECKED"; rm "$$NOT_CHECKED"' EXIT
	CGO_ENABLED=1 go test -race -timeout 25m $(TESTFLAGS) ./...

lint: ## check the walls of the house (.golangci.yml)
	$(TOOL) golangci-lint run ./...

fmt: ## format as gofumpt and goimports do
	$(TOOL) golangci-lint fmt ./...

# The database is asked for only once it is known to answer: that it cannot be
# reached must be loud, but is nothing that this tree can mend.
vuln: ## look for known vulnerabilities (GOVULNDB=URL: in a database of one's own)
	@if [ -z "$${GOVULNDB:-}" ] && ! curl -fsS --max-time 20 -o /dev/null https://vuln.go.dev/index/db.json; then
	  echo '*** NOT CHECKED: known vulnerabilities. The database at vuln.go.dev cannot be reached; set GOVULNDB to another. ***'
	else
	  $(TOOL) govulncheck $${GOVULNDB:+-db "$$GOVULNDB"} ./...
	fi

# Without the race detector, which costs more than all else here together.
fips: tools $(NPM) $(PEBBLE) ## build with Go's certified cryptography, and pass the tests of what uses it in FIPS 140-3 mode
	export CGO_ENABLED=0 GOFIPS140=certified
	go build -trimpath -buildvcs=false -o bin/test/sallyport-fips .
	bin/test/sallyport-fips version | grep -F 'FIPS 140-3 mode, module v'
	go test ./auth/... ./certs ./handlers $$(go list ./internal/... | grep -v /e2e$$)
	go test -run '^Test(Scripts|Examples|Senders|Alertmanager|ACME_Obtain|OpenIDProviders|KeysNew)' ./internal/e2e

cross: ## build for the other systems, and vet the tests there
	for target in linux/arm64 darwin/arm64 freebsd/amd64; do
	  export CGO_ENABLED=0 GOOS=$${target%/*} GOARCH=$${target#*/}
	  go build ./...
	  go vet ./...
	done

crash: tools ## kill the server and its supervisor CRASHES times (200) under load, and count what the commands saw
	CRASHES=$(CRASHES) CGO_ENABLED=1 go test -race -count=1 -timeout 30m -run '^TestCrash' -v ./internal/e2e

# The program that it builds has a wall clock that can be stepped, and no race
# detector.
stress: ## take random operations against the program for STRESS (60m), and judge what came of them; SEED=N: one round again
	STRESS=$(STRESS) CGO_ENABLED=0 go test -count=1 -timeout 0 -run '^TestStress' -v ./internal/e2e

attack: ## attack the program as strangers and as a caller, each attack for ATTACK (20s), and report what a good caller sees
	ATTACK=$(ATTACK) CGO_ENABLED=0 go test -count=1 -timeout 60m -run '^TestAttack$$' -v ./internal/e2e | grep -vE '^(=== |PASS)'
	# Parallel reads just after a start, with a detector of deadlocks, and floods of frames, log lines and audit lines.
	CGO_ENABLED=0 go test -count=1 -timeout 20m -run '^Test(Reads_|Runs_WholeAPI|Flood_|Log_Strangers|Refusals_)' \
	  ./internal/e2e ./handlers ./runner/store ./internal/server ./internal/audit

fuzz: ## fuzz each target for FUZZTIME (10s; or a count, 5000x)
	go test -list '^Fuzz' ./... | awk '/^Fuzz/ {name[n++] = $$1} /^ok/ {for (i = 0; i < n; i++) print name[i], $$2; n = 0}' |
	while read -r name package; do
	  go test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) "$$package" </dev/null
	done

bench: ## report what it costs, in a few minutes: parts, and the program over TLS as ratios to a bare os/exec
	@{
	  go test -run '^$$' -bench . -benchtime 500x ./handlers ./runner/supervisor ./runner/store ./internal/audit
	  go test -run '^$$' -bench . -benchtime 5s ./internal/e2e
	} | awk '/^Benchmark/ && NF > 3 {print $$1; for (i = 3; i < NF; i += 2) printf "%14s  %s\n", $$i, $$(i+1); next} {print}'

clean: ## remove what was built or fetched; certificates, secrets and state stay
	rm -rf bin internal/e2e/testdata/*/node_modules

# Each command that the tests call, and a C compiler for the race detector. Of
# Prometheus and Alertmanager only the programs: without their services, there are none to start.
tools:
	@missing=
	for need in node:nodejs npm:npm openssl:openssl curl:curl jq:jq mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs prometheus-alertmanager:prometheus-alertmanager prometheus:prometheus zsh:zsh fish:fish mandoc:mandoc; do
	  command -v "$${need%:*}" >/dev/null || missing+=" $${need#*:}"
	done
	echo '#include <stdlib.h>' | gcc -E - >/dev/null 2>&1 || missing+=' gcc libc6-dev'
	[ -z "$$missing" ] && exit 0
	sudo=$$([ "$$(id -u)" = 0 ] || echo sudo)
	$$sudo apt-get update -q || true
	$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends \
	  -o DPkg::Options::='--path-exclude=/etc/init.d/prometheus-alertmanager' \
	  -o DPkg::Options::='--path-exclude=*/systemd/system/prometheus-alertmanager.service' \
	  -o DPkg::Options::='--path-exclude=/etc/init.d/prometheus' \
	  -o DPkg::Options::='--path-exclude=*/systemd/system/prometheus.service' $$missing

internal/e2e/testdata/%/node_modules/.package-lock.json: internal/e2e/testdata/%/package.json internal/e2e/testdata/%/package-lock.json internal/e2e/testdata/%/.npmrc | tools
	cd internal/e2e/testdata/$* && npm ci

$(PEBBLE) &: internal/e2e/testdata/acme/go.mod internal/e2e/testdata/acme/go.sum
	CGO_ENABLED=0 go build -modfile=internal/e2e/testdata/acme/go.mod -o bin/test/ \
	  github.com/letsencrypt/pebble/v2/cmd/pebble github.com/letsencrypt/pebble/v2/cmd/pebble-challtestsrv

secrets: examples/secrets/dev examples/secrets/github

# Hex is at home in every scheme: as text, and as base64 too.
examples/secrets/%:
	@umask 077
	mkdir -p $(@D)
	head -c 32 /dev/urandom | od -An -vtx1 | tr -d ' \n' >$@.new
	mv $@.new $@
