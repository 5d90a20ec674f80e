# Every target does its own set-up: the Debian packages that it lacks, then a virtual environment in .venv whose
# contents are locked with hashes. Nothing outside this directory is written, except by apt.

PYTHON ?= python3

# What compiles systemd-python, and what makes a virtual environment.
BUILD_PACKAGES := python3-venv python3-dev libsystemd-dev pkg-config gcc libc6-dev
# `wg` is what the unit tests compare our keys with.
CHECK_PACKAGES := wireguard-tools
# Unmodified clients and kernel ping in network namespaces, and a systemd to boot in its own: tests that only root can run.
ROOT_TEST_PACKAGES := wireguard-go iputils-ping iproute2 procps systemd dbus util-linux nftables git curl

# Where `make install` puts what it installs; DESTDIR, before all of it, is for packages. The interpreter must be one
# that the user of the service can run: not below /root or /home.
PREFIX ?= /opt/oxidize
DESTDIR ?=
UNITDIR ?= /etc/systemd/system
SYSUSERSDIR ?= /usr/lib/sysusers.d
TMPFILESDIR ?= /usr/lib/tmpfiles.d
SYSCTLDIR ?= /usr/lib/sysctl.d
CONFDIR ?= /etc/oxidize
INSTALL_PYTHON ?= /usr/bin/python3

# The packages follow from the goals as a whole, so that whoever may not install them gets one line, not one a target.
NEEDED := $(BUILD_PACKAGES)
ifneq ($(filter check test test-handoff test-systemd bench bench-reconnect,$(MAKECMDGOALS)),)
NEEDED += $(CHECK_PACKAGES)
endif
ifneq ($(filter test test-handoff test-systemd bench bench-reconnect,$(MAKECMDGOALS)),)
ifeq ($(shell id -u),0)
NEEDED += $(ROOT_TEST_PACKAGES)
endif
endif

BIN := .venv/bin
SETUP := .stamps/venv
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
# What builds the source distributions (wheel imports packaging). pip is not to fetch build tools of its own choice.
BUILD_TOOLS := setuptools|wheel|packaging
BUILD_TOOLS_LOCK := awk '/^($(BUILD_TOOLS))==/ { p = 1 } p { print } !/\\$$/ { p = 0 }' requirements-dev.lock
HASHED := --quiet --require-hashes --no-build-isolation --use-pep517

# A second make in the same tree waits: pip and apt-get do not mind finding their work done, but do mind sharing it.
ALONE := exec 9> .stamps/busy; flock 9

# The version of the tool that writes the locks: another one may order or annotate them differently.
UV_VERSION := 0.13.9
LOCK := .stamps/lock/bin/uv --quiet pip compile --universal --python-version 3.11 --generate-hashes --no-header \
	--no-emit-index-url --no-emit-find-links --extra systemd $(UV_ARGS)

.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help demo test test-handoff test-systemd check bench bench-reconnect install release units \
	changed-units uninstall venv packages lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-24s %s\n", $$1, $$2 }'

demo: $(SETUP) ## replace a server under the traffic of 20 clients, and count what they lost (no root)
	@$(BIN)/python -m demo

test: $(SETUP) ## all tests; as root also those with network namespaces and wireguard-go
	@$(BIN)/python -m pytest

test-handoff: $(SETUP) ## only the tests that replace a process under traffic
	@$(BIN)/python -m pytest -m handoff

test-systemd: $(SETUP) ## only the tests that boot a systemd (as root)
	@$(BIN)/python -m pytest tests/system

check: $(SETUP) ## linters, types, unit and property tests: under a minute, before each commit
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --strict
	@$(BIN)/python -m pytest --quiet tests/unit tests/properties

bench: $(SETUP) ## measure the data path and the takeover on this machine
	@$(BIN)/python -m benchmarks

bench-reconnect: $(SETUP) ## measure how soon a client is back, beside wireguard-go as client (as root)
	@$(BIN)/python -m benchmarks reconnect

venv: $(SETUP) ## only the set-up: packages and .venv

INSTALL := PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' UNITDIR='$(UNITDIR)' SYSUSERSDIR='$(SYSUSERSDIR)' \
	TMPFILESDIR='$(TMPFILESDIR)' SYSCTLDIR='$(SYSCTLDIR)' CONFDIR='$(CONFDIR)' INSTALL_PYTHON='$(INSTALL_PYTHON)' \
	sh systemd/install.sh

install: | packages ## a release in PREFIX/releases (PREFIX=/opt/oxidize), PREFIX/current, units, user; as root
	@$(BUILD_TOOLS_LOCK) | $(INSTALL) install

release: | packages ## only the release, which nothing points at; its folder is the last line that is printed
	@$(BUILD_TOOLS_LOCK) | $(INSTALL) release

units: ## only the units, the user and the sysctls; as root
	@$(INSTALL) units

changed-units: ## print which installed units are not those of this source
	@$(INSTALL) changed-units

uninstall: ## stop the service and remove what install put there; /etc/oxidize is kept
	@$(INSTALL) uninstall

# An environment that works is updated in place and not cleared: a server may be running from it.
$(SETUP): requirements.lock requirements-dev.lock pyproject.toml | packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is $$($(PYTHON) --version 2>&1), Python 3.11 or later is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@set -e; mkdir -p .stamps; $(ALONE); \
	echo "setting up .venv"; \
	$(PIP) --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear .venv; \
	$(BUILD_TOOLS_LOCK) > .stamps/build-tools.lock; \
	$(PIP) install $(HASHED) --no-deps -r .stamps/build-tools.lock; \
	$(PIP) install $(HASHED) -r requirements-dev.lock; \
	$(PIP) install --quiet --no-deps --no-build-isolation -e .; \
	touch $@

# Elsewhere than on Debian (no dpkg-query) the packages have other names: the compiler then says what is missing.
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

lock: | packages ## lock the dependencies of pyproject.toml anew (newest versions: make lock UV_ARGS=--upgrade)
	@mkdir -p .stamps
	@$(PYTHON) -m venv .stamps/lock
	@.stamps/lock/bin/python -m pip --disable-pip-version-check --no-input install --quiet uv==$(UV_VERSION)
	@$(LOCK) pyproject.toml -o requirements.lock
	@$(LOCK) --extra demo --extra dev -c requirements.lock pyproject.toml -o requirements-dev.lock

clean: ## remove everything that was made here, the virtual environment too
	@rm -rf .venv .stamps build dist oxidize.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-*.html
	@find . -name .git -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
