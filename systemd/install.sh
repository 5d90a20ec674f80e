#!/bin/sh
# What `make install` and `make uninstall` do: put a release under $PREFIX/releases, point $PREFIX/current at it, and
# give systemd its units. The rule: a release is never changed once it is there, so a process that runs from it loads
# no other code than it began with, and to go back is to point `current` at the release before.
#
# The environment: PREFIX, DESTDIR (put before every path, for packages), UNITDIR, SYSUSERSDIR, TMPFILESDIR, SYSCTLDIR,
# CONFDIR, INSTALL_PYTHON, BUILD_TOOLS (the lock of what builds source distributions). Sources: hier(7), sysusers.d(5),
# tmpfiles.d(5), sysctl.d(5).
set -eu
umask 022
cd "$(dirname "$0")/.."

UNITS="oxidize-daemon.service oxidize.socket oxidize-http.socket oxidize-client.service"

is_live() { test -z "$DESTDIR" && test "$(id -u)" = 0; }
has_systemd() { is_live && test -d /run/systemd/system; }

version() { sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml; }
revision() { git describe --always --dirty --exclude='*' 2> /dev/null || echo local; }

# Nobody may find a release that is half there: it gets its name when it is whole.
build_release() {
	name=$1
	releases=$DESTDIR$PREFIX/releases
	mkdir -p "$releases"
	work=$(mktemp -d)
	release=$releases/$name
	trap 'rm -rf "$work" "$release"' EXIT
	"$INSTALL_PYTHON" -m venv "$release"
	pip="$release/bin/python -m pip --disable-pip-version-check --no-input"
	hashed="--quiet --require-hashes --no-build-isolation --use-pep517 --no-compile"
	$pip install $hashed --no-deps -r "$BUILD_TOOLS"
	$pip install $hashed -r requirements.lock
	# From a copy: setuptools leaves folders where it builds, and takes stale modules out of them the next time.
	mkdir "$work/source"
	cp -R pyproject.toml README.md LICENSE oxidize "$work/source"
	$pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work" "$work/source"
	$pip install --quiet --no-deps --no-index --no-compile "$work"/*.whl
	# A server needs nothing with which to install more.
	$pip uninstall --quiet --yes --root-user-action=ignore setuptools wheel packaging pip
	find "$release" -name __pycache__ -prune -exec rm -rf {} +
	if test -n "$DESTDIR"; then
		# Scripts name the interpreter by its path; they are to name the one where the release will be.
		grep -rlIF "$DESTDIR$PREFIX" "$release/bin" "$release/pyvenv.cfg" | xargs -r sed -i "s|$DESTDIR$PREFIX|$PREFIX|g"
	fi
	"$release/bin/python" -m compileall -q -s "$DESTDIR" "$release/lib"
	trap - EXIT
	rm -rf "$work"
}

point_current_at() {
	ln -s "releases/$1" "$DESTDIR$PREFIX/current.new"
	mv -T "$DESTDIR$PREFIX/current.new" "$DESTDIR$PREFIX/current"
}

put() { # SOURCE TARGET: with the paths of this installation in it
	mkdir -p "$(dirname "$DESTDIR$2")"
	sed "s|/opt/oxidize/|$PREFIX/|g; s|/etc/oxidize/|$CONFDIR/|g; s|/etc/oxidize |$CONFDIR |g" "$1" > "$DESTDIR$2.new"
	mv "$DESTDIR$2.new" "$DESTDIR$2"
}

# The interfaces whose default route the kernel has from a router's advertisement, and would forget as it forwards.
advertised() {
	is_live && command -v ip > /dev/null || return 0
	for name in $(ip -6 route show default proto ra | sed -n 's/.* dev \([^ ]*\).*/\1/p' | sort -u); do
		# With 0 another program heeds the advertisements, and goes on with it.
		test "$(cat "/proc/sys/net/ipv6/conf/$name/accept_ra")" = 0 || echo "$name"
	done
}

put_sysctls() {
	target=$SYSCTLDIR/60-oxidize.conf
	put systemd/sysctl.conf "$target"
	for name in $(advertised); do
		# Before the lines that switch forwarding on.
		sed -i "/^net.ipv4.ip_forward/i net/ipv6/conf/$name/accept_ra = 2" "$DESTDIR$target"
	done
	# This file alone: what an operator has changed by hand stays. By its name, so that one in /etc/sysctl.d counts.
	has_systemd || return 0
	/lib/systemd/systemd-sysctl 60-oxidize.conf || echo "$target could not be applied: nat = true will say so" >&2
}

install_all() {
	name=$(version)-$(date -u +%Y%m%dT%H%M%SZ)-$(revision)
	test ! -e "$DESTDIR$PREFIX/releases/$name" || { echo "$PREFIX/releases/$name exists: wait a second" >&2; exit 1; }
	build_release "$name"
	for unit in $UNITS; do put "systemd/$unit" "$UNITDIR/$unit"; done
	put systemd/sysusers.conf "$SYSUSERSDIR/oxidize.conf"
	put systemd/tmpfiles.conf "$TMPFILESDIR/oxidize.conf"
	put_sysctls
	mkdir -p "$DESTDIR$CONFDIR"
	chmod 0750 "$DESTDIR$CONFDIR"
	if ! test -e "$DESTDIR$CONFDIR/server.toml"; then
		put systemd/server.toml "$CONFDIR/server.toml"
		chmod 0640 "$DESTDIR$CONFDIR/server.toml"
	fi
	if is_live && command -v systemd-sysusers > /dev/null; then
		systemd-sysusers "$SYSUSERSDIR/oxidize.conf"
		systemd-tmpfiles --create "$TMPFILESDIR/oxidize.conf"
	fi
	point_current_at "$name"
	has_systemd && systemctl daemon-reload
	echo "$PREFIX/current -> releases/$name"
}

uninstall_all() {
	if has_systemd; then
		systemctl disable --quiet --now $UNITS 2> /dev/null || true
	fi
	for unit in $UNITS; do rm -f "$DESTDIR$UNITDIR/$unit"; done
	rm -f "$DESTDIR$SYSUSERSDIR/oxidize.conf" "$DESTDIR$TMPFILESDIR/oxidize.conf" "$DESTDIR$PREFIX/current"
	rm -f "$DESTDIR$SYSCTLDIR/60-oxidize.conf" "$DESTDIR/var/lib/oxidize/endpoints.json"
	rm -rf "$DESTDIR$PREFIX/releases"
	rmdir "$DESTDIR$PREFIX" 2> /dev/null || true
	has_systemd && systemctl daemon-reload
	echo "removed; $CONFDIR and the user oxidize are kept"
}

case "${1-}" in
	install) install_all ;;
	uninstall) uninstall_all ;;
	*) echo "usage: $0 install|uninstall" >&2; exit 2 ;;
esac
