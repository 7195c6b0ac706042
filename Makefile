# make alone builds; make help lists the targets.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

GO       ?= go
FUZZTIME ?= 30s
# A tree that is not a git checkout (a release archive, say) has no version to describe.
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
TOOL      = $(GO) tool -modfile=$(CURDIR)/tools/go.mod

.PHONY: build run test lint fuzz e2e e2e-programs bench anonymity soak clean help

build: ## one static binary, bin/cepa
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-X main.version=$(VERSION)" -o bin/cepa ./cmd/cepa

run: build ## a whole network on this machine; ARGS="…" are passed on
	exec bin/cepa simnet $(ARGS)

test: ## all tests with the race detector, then what it would disturb without
	$(GO) test -race ./...
	$(GO) test -run Alloc -count=1 ./... | (grep -v 'no test' || true)
	cd bench/tor/load && $(GO) vet ./... && $(GO) build -o /dev/null ./...

lint: ## gofumpt, go vet, staticcheck
	@unformatted=$$($(TOOL) gofumpt -l .); \
	if [ -n "$$unformatted" ]; then echo "not formatted (gofumpt -w):" $$unformatted; exit 1; fi
	$(GO) vet ./...
	$(GO) vet -tags e2e ./e2e
	$(TOOL) staticcheck ./...
	$(TOOL) staticcheck -tags e2e ./e2e
	cd bench/tor/load && $(TOOL) staticcheck ./...

fuzz: ## every fuzz target for FUZZTIME (30s)
	@$(GO) test -list '^Fuzz' ./... | awk '/^Fuzz/ {name[n++] = $$1} /^ok/ {for (i = 0; i < n; i++) print $$2, name[i]} !/^Fuzz/ {n = 0}' | \
	while read -r package target; do \
		echo "== $$package $$target"; \
		$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$package </dev/null || exit 1; \
	done

E2E_PROGRAMS = curl wget git ip prlimit torsocks proxychains4 nc.openbsd ssh /usr/sbin/sshd /usr/sbin/nginx chromium
E2E_PACKAGES = curl wget git iproute2 util-linux torsocks proxychains4 netcat-openbsd openssh-client openssh-server nginx-light chromium

e2e-programs:
	@type $(E2E_PROGRAMS) >/dev/null 2>&1 || { apt-get update -q && apt-get install -q -y --no-install-recommends $(E2E_PACKAGES); }

e2e: build e2e-programs ## curl, git, ssh, a browser and more against bin/cepa; as root also in network namespaces
	$(GO) test -tags e2e -count=1 -timeout 15m ./e2e

bench: build ## benchmarks of the rooms, then whole networks, in one process and in many, beside their floor
	$(GO) test -run '^$$' -bench . -benchmem ./... | (grep -v 'no test files' || true)
	bench/run
	RUNS=1 bench/roles

anonymity: ## measures guards, paths and vanguards, and writes tables and plots to doc/anonymity
	mkdir -p doc/anonymity
	$(GO) test -count=1 -timeout 3h -v -run '^TestAnonymity' ./path -args -soak -anonymity $(CURDIR)/doc/anonymity

soak: build e2e-programs ## the long campaigns: tests of the packages that know the flag -soak
	@packages=$$(grep -rl --include='*_test.go' 'flag.Bool("soak"' . | xargs -r -n1 dirname | sort -u); \
	if [ -z "$$packages" ]; then echo "no package has a long campaign"; exit 0; fi; \
	$(GO) test -tags e2e -count=1 -timeout 3h $$packages -args -soak

clean: ## removes bin/
	rm -rf bin

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "make %-9s  %s\n", $$1, $$2}' $(MAKEFILE_LIST)
