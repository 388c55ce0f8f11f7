# The commands for a first look and for daily work; everything else is cargo's.
SHELL := /bin/bash
.DEFAULT_GOAL := help

RELEASE := target/$(shell rustc -vV | sed -n 's/^host: //p')/release/syncctl

.PHONY: help build install check test soak fuzz quickstart bench lint generate image cluster-up cluster-down clean

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

build: ## Build the release binary: one static executable
	cargo build --release --locked
	@echo $(RELEASE)

install: build ## Install it into PREFIX (default /usr/local), with completions
	install -D $(RELEASE) $(DESTDIR)$(or $(PREFIX),/usr/local)/bin/syncctl
	install -D -m 644 completions/syncctl.bash $(DESTDIR)$(or $(PREFIX),/usr/local)/share/bash-completion/completions/syncctl
	install -D -m 644 completions/_syncctl $(DESTDIR)$(or $(PREFIX),/usr/local)/share/zsh/site-functions/_syncctl
	install -D -m 644 completions/syncctl.fish $(DESTDIR)$(or $(PREFIX),/usr/local)/share/fish/vendor_completions.d/syncctl.fish
	install -D -m 644 -t $(DESTDIR)$(or $(PREFIX),/usr/local)/share/man/man1 man/*.1

test: ## Run every test, end to end on a real Kubernetes (installs what is missing)
	tests/run

check: ## The short loop: lint, unit tests, and every test that needs no cluster
	SYNCCTL_TEST_SKIP_CLUSTER=1 SYNCCTL_TEST_KEEP_CLUSTER=1 tests/run

soak: ## Recovery: outages of a minute, 200 kills, a million records; and 5000 random scenarios of rows
	SYNCCTL_TEST_PROFILE=release SYNCCTL_TEST_OUTAGE_SECONDS=60 SYNCCTL_TEST_ROUNDS=200 SYNCCTL_TEST_CASES=5000 \
		SYNCCTL_TEST_FAKER_RECORDS=1000000 tests/run -- kill:: outages:: crash:: faker:: model::

fuzz: ## Fuzz each parser of foreign bytes for SYNCCTL_FUZZ_SECONDS (600); stops at a finding
	fuzz/run

quickstart: ## spec, check, discover and read of a real connector on this machine, with a database of its own
	tests/quickstart

bench: ## Measure against bare Pods and psql \copy
	tests/bench/run

lint: ## Formatting, clippy (warnings denied), vocabulary, dependencies
	tests/lint

generate: ## Regenerate completions, man pages, docs/settings.md and the golden help files
	cargo build --locked
	for shell in bash zsh fish; do cargo run --quiet --locked -- generate $$shell --into completions; done
	cargo run --quiet --locked -- generate man --into man
	cargo run --quiet --locked -- generate settings --into docs
	SYNCCTL_TEST_UPDATE=1 cargo test --locked --test it -- cli::

image: build ## Write the image archive target/syncctl.tar
	$(RELEASE) image >target/syncctl.tar

cluster-up: ## Bring up the Kubernetes and PostgreSQL of the tests
	tests/cluster/up

cluster-down: ## Stop them
	tests/cluster/down

clean: ## Remove what was built
	cargo clean
