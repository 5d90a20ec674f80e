# Every target does its own set-up: the missing Debian packages, then a virtual environment in .venv whose contents are
# locked with hashes. Nothing outside this directory is written, except by apt.

# The distribution's: what `make install` runs the product with, and optimized, as one built by hand often is not.
PYTHON ?= $(shell /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null \
	&& echo /usr/bin/python3 || echo python3)

# Needed to compile systemd-python and to make a virtual environment.
BUILD_PACKAGES := python3-venv python3-dev libsystemd-dev pkg-config gcc libc6-dev
# dpkg-shlibdeps, which finds the libraries that a Debian package needs.
DEB_PACKAGES := dpkg-dev
# The model checker: it writes a C program for each scenario.
MODEL_PACKAGES := spin
# `wg`: the unit tests compare the keys of `oxidize genkey` with its own. They search a small model, too, and typeset the
# manual.
CHECK_PACKAGES := wireguard-tools groff-base $(MODEL_PACKAGES)
# For the tests that need root: unmodified clients and the kernel's ping in network namespaces, and a systemd that
# boots in namespaces of its own, where packages are installed.
ROOT_TEST_PACKAGES := wireguard-go iputils-ping iproute2 procps systemd dbus util-linux nftables git curl crun \
	$(DEB_PACKAGES)
# For the benchmark of bulk.
BENCH_PACKAGES := iperf3

# The destinations of `make install`; DESTDIR is a prefix to all of them, for packagers. The service's user must be able
# to run the interpreter: not one below /root or /home.
PREFIX ?= /opt/oxidize
DESTDIR ?=
BINDIR ?= /usr/local/bin
MANDIR ?= /usr/local/share/man
COMPLETIONDIR ?= /usr/share/bash-completion/completions
ZSHDIR ?= /usr/local/share/zsh/site-functions
FISHDIR ?= /usr/share/fish/vendor_completions.d
UNITDIR ?= /etc/systemd/system
SYSUSERSDIR ?= /usr/lib/sysusers.d
TMPFILESDIR ?= /usr/lib/tmpfiles.d
SYSCTLDIR ?= /usr/lib/sysctl.d
CONFDIR ?= /etc/oxidize
INSTALL_PYTHON ?= /usr/bin/python3

# Of what `make deb` and `make wheel` build.
DIST ?= dist

FUZZ_SECS ?= 600

# Computed from all goals together: an ordinary user gets one line that lists all missing packages.
NEEDED := $(BUILD_PACKAGES)
ifneq ($(filter check test test-handoff test-systemd bench bench-flood bench-reconnect profile,$(MAKECMDGOALS)),)
NEEDED += $(CHECK_PACKAGES)
endif
ifneq ($(filter test test-handoff test-systemd bench bench-flood bench-reconnect profile,$(MAKECMDGOALS)),)
ifeq ($(shell id -u),0)
NEEDED += $(ROOT_TEST_PACKAGES)
endif
endif
ifneq ($(filter deb,$(MAKECMDGOALS)),)
NEEDED += $(DEB_PACKAGES)
endif
ifneq ($(filter model,$(MAKECMDGOALS)),)
NEEDED += $(MODEL_PACKAGES)
endif
ifneq ($(filter bench,$(MAKECMDGOALS)),)
NEEDED += $(BENCH_PACKAGES)
endif

BIN := .venv/bin
DEMO_SETUP := .stamps/demo
SETUP := .stamps/dev
FUZZ_SETUP := .stamps/fuzz
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
# These build the source distributions (wheel imports packaging), so that pip fetches no build tools of its own choice.
BUILD_TOOLS := setuptools|wheel|packaging
BUILD_TOOLS_LOCK := awk '/^($(BUILD_TOOLS))==/ { p = 1 } p { print } !/\\$$/ { p = 0 }' requirements-dev.lock
HASHED := --quiet --require-hashes --no-build-isolation --use-pep517

# A second make in the same tree waits: pip and apt-get cannot run twice at a time.
ALONE := exec 9> .stamps/busy; flock 9

# A line with this folder's path: the finder that setuptools installs otherwise takes 12 ms of each process.
BY_PATH := --config-settings editable_mode=compat

# The version of the tool that writes the locks: another version may order or annotate them differently.
UV_VERSION := 0.13.9
LOCK := .stamps/lock/bin/uv --quiet pip compile --universal --python-version 3.11 --generate-hashes --no-header \
	--no-emit-index-url --no-emit-find-links --extra systemd $(UV_ARGS)

.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help demo test test-handoff test-systemd sim check model fuzz mutants docs man bench bench-flood bench-reconnect \
	profile install release deb wheel units changed-units uninstall venv packages lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-24s %s\n", $$1, $$2 }'

demo: $(DEMO_SETUP) ## replace a server under the traffic of 20 clients and count the lost packets (no root)
	@$(BIN)/python -m demo

test: $(SETUP) ## run all tests; as root also those with network namespaces, wireguard-go and a booted systemd
	@$(BIN)/python -m tests.lanes

test-handoff: $(SETUP) ## run only the tests that replace a process under traffic
	@$(BIN)/python -m pytest -m handoff

test-systemd: $(SETUP) ## run only the tests that boot a systemd (as root)
	@$(BIN)/python -m pytest tests/system

sim: $(SETUP) ## simulate WORLDS=10000 whole worlds, from SEED=(drawn) on, and find every planted bug
	@WORLDS='$(WORLDS)' SEED='$(SEED)' $(BIN)/python -m tests.support.sim

check: $(SETUP) ## run linters, type checks, unit and property tests: about a minute, before each commit
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --strict
	@$(BIN)/python -m pytest --quiet --numprocesses 2 --dist worksteal tests/unit tests/properties

model: $(SETUP) ## check the model of the takeover with every crash, hang and order, and that it finds planted faults
	@$(BIN)/python -m tests.support.model_checker

fuzz: $(FUZZ_SETUP) ## fuzz every parser for FUZZ_SECS=600 each, in one process for each processor
	@$(BIN)/python -m tests.fuzz --secs $(FUZZ_SECS)

mutants: $(SETUP) ## plant each bug of tests/mutants in a copy of the source: a test must find it (NAMES="..." for some)
	@$(BIN)/python -m tests.mutants $(NAMES)

docs: $(SETUP) ## write the pages that are generated from the source
	@for script in scripts/*.py; do $(BIN)/python "$$script" || exit 1; done

man: $(SETUP) ## write the manual pages of the commands into build/man: `man -l build/man/oxidize.1`
	@$(BIN)/python scripts/release/man_pages.py build/man

bench: $(SETUP) ## measure data path and takeover beside wireguard-go in 25 minutes; writes docs/benchmarks (as root; NAMES="..." for some)
	@$(BIN)/python -m benchmarks $(NAMES)

bench-flood: $(SETUP) ## measure what floods of useless datagrams take from a session
	@$(BIN)/python -m benchmarks flood

bench-reconnect: $(SETUP) ## measure how soon a client reconnects, compared with wireguard-go (as root)
	@$(BIN)/python -m benchmarks reconnect

profile: $(SETUP) ## measure what each stage of one packet's way through a server costs (as root)
	@$(BIN)/python -m benchmarks profile

venv: $(SETUP) ## set up packages and .venv for development

INSTALL := PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' BINDIR='$(BINDIR)' MANDIR='$(MANDIR)' COMPLETIONDIR='$(COMPLETIONDIR)' \
	ZSHDIR='$(ZSHDIR)' FISHDIR='$(FISHDIR)' \
	UNITDIR='$(UNITDIR)' SYSUSERSDIR='$(SYSUSERSDIR)' TMPFILESDIR='$(TMPFILESDIR)' SYSCTLDIR='$(SYSCTLDIR)' CONFDIR='$(CONFDIR)' \
	INSTALL_PYTHON='$(INSTALL_PYTHON)' sh systemd/install.sh

install: | packages ## install a release below PREFIX=/opt/oxidize, PREFIX/current, the command, the units and the users
	@$(BUILD_TOOLS_LOCK) | $(INSTALL) install

release: | packages ## install only the release, without switching to it; the last line printed is its folder
	@$(BUILD_TOOLS_LOCK) | $(INSTALL) release

deb: | packages ## build a Debian package of a release into dist/: no compiler and no PyPI where it is installed
	@$(BUILD_TOOLS_LOCK) | INSTALL_PYTHON='$(INSTALL_PYTHON)' DIST='$(DIST)' sh debian/build.sh

# From a copy: setuptools leaves folders where it builds.
wheel: $(SETUP) ## build the wheel for PyPI into dist/
	@set -e; work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; \
	cp -R pyproject.toml LICENSE oxidize scripts "$$work"; \
	$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir '$(DIST)' "$$work"

units: ## install only the command, the units, the users and the sysctls (as root)
	@$(INSTALL) units

changed-units: ## print the installed units that differ from this source
	@$(INSTALL) changed-units

uninstall: ## stop the service and remove everything but /etc/oxidize (as root)
	@$(INSTALL) uninstall

# One environment, filled as far as a target needs: `make demo` installs neither linters nor test tools. A working
# environment is updated in place, not cleared: a server may be running from it.
$(DEMO_SETUP): requirements.lock
$(FUZZ_SETUP): requirements-fuzz.lock
$(DEMO_SETUP) $(SETUP) $(FUZZ_SETUP): .stamps/%: requirements-dev.lock pyproject.toml | packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is $$($(PYTHON) --version 2>&1), Python 3.11 or later is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@set -e; mkdir -p .stamps; $(ALONE); \
	echo "setting up .venv"; \
	$(PIP) --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear .venv; \
	$(BUILD_TOOLS_LOCK) > .stamps/build-tools.lock; \
	$(PIP) install $(HASHED) --no-deps -r .stamps/build-tools.lock; \
	$(PIP) install $(HASHED) -r $(patsubst requirements-demo.lock,requirements.lock,requirements-$*.lock); \
	$(PIP) install --quiet --no-deps --no-build-isolation $(BY_PATH) -e .; \
	touch $@

# On systems other than Debian (no dpkg-query) packages have other names; the compiler then reports what is missing.
packages:
	@command -v dpkg-query > /dev/null || exit 0; \
	missing=; \
	for package in $(NEEDED); do \
		case "$$(dpkg-query -W -f '$${db:Status-Status}' $$package 2> /dev/null)" in \
			installed) ;; \
			*) missing="$$missing $$package" ;; \
		esac; \
	done; \
	test -n "$$missing" || exit 0; \
	if [ "$$(id -u)" != 0 ]; then \
		echo "Debian packages are missing; install them with: sudo apt-get install -y --no-install-recommends$$missing" >&2; \
		exit 1; \
	fi; \
	echo "installing Debian packages:$$missing"; \
	mkdir -p .stamps; $(ALONE); \
	export DEBIAN_FRONTEND=noninteractive; \
	{ apt-get update && apt-get install -y --no-install-recommends$$missing; } > .stamps/apt.log 2>&1 < /dev/null \
		|| { tail -n 20 .stamps/apt.log >&2; exit 1; }

lock: | packages ## renew the locks of the dependencies in pyproject.toml (newest versions: UV_ARGS=--upgrade)
	@mkdir -p .stamps
	@$(PYTHON) -m venv .stamps/lock
	@.stamps/lock/bin/python -m pip --disable-pip-version-check --no-input install --quiet uv==$(UV_VERSION)
	@$(LOCK) pyproject.toml -o requirements.lock
	@$(LOCK) --extra dev -c requirements.lock pyproject.toml -o requirements-dev.lock
	@$(LOCK) --extra dev --extra fuzz -c requirements-dev.lock pyproject.toml -o requirements-fuzz.lock

clean: ## remove everything that make created here, the virtual environment too
	@rm -rf .venv .stamps .fuzz build dist *.egg-info .mypy_cache .import_linter_cache .ruff_cache .pytest_cache .hypothesis demo-*.html
	@find . -name .git -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
