#!/bin/sh
# The work of `make install`, of its halves `make release` and `make units`, and of `make uninstall`: put a release
# under $PREFIX/releases, install the units and the command, and point $PREFIX/current at the release. The rule: a complete release is never
# changed, so a process that runs from it loads no other code than it began with, and a rollback points `current` at an
# older release. One at a time: each process that changes $PREFIX holds $PREFIX/.lock.
#
# The environment: PREFIX, DESTDIR (put before every path, for packages), BINDIR, MANDIR, COMPLETIONDIR (of bash), ZSHDIR,
# FISHDIR, UNITDIR, SYSUSERSDIR, TMPFILESDIR, SYSCTLDIR, CONFDIR, INSTALL_PYTHON; OXIDIZE_LOCKED=1 if the caller holds the
# lock and passes its descriptor. A build reads the locked versions of the build tools from standard input. Sources:
# hier(7), sysusers.d(5), tmpfiles.d(5), sysctl.d(5), flock(1), sync(1).
set -eu
umask 022
cd "$(dirname "$0")/.."

UNITS="oxidize-daemon.service oxidize.socket oxidize-http.socket oxidize-wg.socket oxidize-client.service oxidize-client-wg.socket oxidize-kill-switch.service"

release= # the folder of the one that is built

is_live() { test -z "$DESTDIR" && test "$(id -u)" = 0; }
has_systemd() { is_live && test -d /run/systemd/system; }

version() { sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml; }
# Root builds from a checkout of another user, which git reads only if it is named as safe.
revision() {
	git -c safe.directory="$(pwd -P)" describe --always --dirty --exclude='*' 2> /dev/null || echo local
}

# Every process of a build inherits the descriptor, so that the lock is held until the last of them has ended, even if
# this script is killed before them. A package (DESTDIR) is built in a folder of its own and needs no lock.
lock() { # WHO
	test -z "$DESTDIR" && test "${OXIDIZE_LOCKED-}" != 1 || return 0
	lock=$PREFIX/.lock
	# Mode 0600: a user who can read the file could hold the lock and so prevent every deployment.
	{ mkdir -p "$PREFIX" && (umask 077 && : >> "$lock"); } 2> /dev/null || {
		echo "$lock cannot be written: try sudo, or name a folder that you may write to: make PREFIX=/path ..." >&2
		exit 1
	}
	exec 9<> "$lock"
	# `make uninstall` may have removed the file between these two: a lock on a removed file excludes no process.
	flock -n 9 && test "$lock" -ef /dev/fd/9 || {
		holder=$(head -n 1 "$lock" 2> /dev/null || true)
		echo "another build or deployment is under way: ${holder:-it has just begun}, try again when it has ended" >&2
		exit 1
	}
	echo "pid $$, $1, since $(date -u +%Y-%m-%dT%H:%M:%SZ)" > "$lock"
}

# Instead of pip's, which say nothing that helps where the interpreter has gone.
put_launcher() { # PROGRAM FUNCTION, into `release`, called `name`
	python=$("$release/bin/python" -c 'import sys; print("Python %d.%d" % sys.version_info[:2])')
	sed "s|@RELEASE@|$PREFIX/releases/$name|g; s|@PYTHON@|$python|g; s|@ENTRY@|$2|g" systemd/launcher.in > "$release/bin/$1"
	chmod 755 "$release/bin/$1"
}

# A folder is a release only once it has its release.json, which is written last: no half-built release is ever found.
build_release() { # NAME VERSION REVISION
	name=$1
	release=$DESTDIR$PREFIX/releases/$name
	test ! -e "$release/release.json" || { echo "$PREFIX/releases/$name exists: wait a second" >&2; exit 1; }
	rm -rf "$release" # a build that was cut off
	mkdir -p "$DESTDIR$PREFIX/releases"
	work=$(mktemp -d)
	trap 'rm -rf "$work" "$release"' EXIT
	trap 'exit 1' HUP INT TERM
	cat > "$work/build-tools.lock"
	"$INSTALL_PYTHON" -m venv "$release"
	pip="$release/bin/python -m pip --disable-pip-version-check --no-input"
	hashed="--quiet --require-hashes --no-build-isolation --use-pep517 --no-compile"
	$pip install $hashed --no-deps -r "$work/build-tools.lock"
	$pip install $hashed -r requirements.lock
	# From a copy: setuptools leaves folders where it builds, and reuses stale modules from them the next time.
	mkdir "$work/source"
	cp -R pyproject.toml LICENSE oxidize scripts "$work/source"
	$pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work" "$work/source"
	# By name: a file's path would be written down in the release.
	$pip install --quiet --no-deps --no-index --find-links "$work" --no-compile oxidize-relay
	put_launcher oxidize main
	put_launcher oxidize-server server_main
	put_launcher oxidize-client client_main
	mkdir -p "$release/share/doc/oxidize"
	cp -R README.md SECURITY.md CHANGELOG.md docs contrib "$release/share/doc/oxidize"
	"$release/bin/python" -P scripts/release/man_pages.py "$release/share/man/man1"
	"$release/bin/python" -P scripts/release/completions.py "$release/share"
	# A server needs no tools to install packages.
	$pip uninstall --quiet --yes --root-user-action=ignore setuptools wheel packaging pip
	find "$release" -name __pycache__ -prune -exec rm -rf {} +
	if test -n "$DESTDIR"; then
		# Scripts name the interpreter by its path: the path at which the release will be installed.
		grep -rlIF "$DESTDIR$PREFIX" "$release/bin" "$release/pyvenv.cfg" | xargs -r sed -i "s|$DESTDIR$PREFIX|$PREFIX|g"
		# So their hashes are of other files.
		find "$release/lib" -name RECORD -exec sed -i 's|^\(\(\.\./\)*bin/[^,]*\),.*|\1,,|' {} +
	fi
	# A release is not changed, and may be copied by what keeps no times (an image, a package): its byte-code holds without
	# a look at the source. Without it each start takes 0.15 s longer, for a service cannot write it.
	"$release/bin/python" -m compileall -q --invalidation-mode unchecked-hash -s "$DESTDIR" "$release/lib"
	record=$release/release.json
	printf '{"version": "%s", "built_unix": %s, "revision": "%s"}\n' "$2" "$now" "$3" > "$record.new"
	sync -f "$record.new" # the whole release, before its record exists
	mv "$record.new" "$record"
	sync "$release"
	trap - EXIT HUP INT TERM
	rm -rf "$work"
}

build() { # sets `name`
	version=$(version)
	revision=$(revision)
	now=${SOURCE_DATE_EPOCH:-$(date +%s)}
	build_release "$version-$(date -u -d "@$now" +%Y%m%dT%H%M%SZ)-$revision" "$version" "$revision"
}

point_current_at() {
	ln -sfn "releases/$1" "$DESTDIR$PREFIX/current.new"
	mv -T "$DESTDIR$PREFIX/current.new" "$DESTDIR$PREFIX/current"
}

with_paths() { # SOURCE: with the paths of this installation in it
	sed "s|/opt/oxidize/|$PREFIX/|g; s|/etc/oxidize/|$CONFDIR/|g; s|/etc/oxidize |$CONFDIR |g" "$1"
}

put() { # SOURCE TARGET
	mkdir -p "$(dirname "$DESTDIR$2")"
	with_paths "$1" > "$DESTDIR$2.new"
	mv "$DESTDIR$2.new" "$DESTDIR$2"
}

# The interfaces with a default route from a router advertisement, which the kernel would drop when it forwards.
advertised() {
	is_live && command -v ip > /dev/null || return 0
	for name in $(ip -6 route show default proto ra | sed -n 's/.* dev \([^ ]*\).*/\1/p' | sort -u); do
		# With 0 another program, not the kernel, handles the advertisements, and continues to.
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
	# Only this file: settings that an operator changed by hand stay. By name, so that one in /etc/sysctl.d overrides it.
	has_systemd || return 0
	/lib/systemd/systemd-sysctl 60-oxidize.conf || echo "$target could not be applied: nat = true will say so" >&2
}

# The command leads through `current`, so a deployment changes it as well. A file of another origin is left alone.
put_command() {
	command=$DESTDIR$BINDIR/oxidize
	if is_link_to bin/oxidize "$command" || ! test -e "$command"; then
		put_link bin/oxidize "$BINDIR/oxidize"
	else
		echo "$BINDIR/oxidize is not of this installation, and is kept: the command is $PREFIX/current/bin/oxidize" >&2
	fi
	for shared in $(shared_files); do put_link "$shared" "$(path_of "$shared")"; done
}

put_link() { # WHAT, below `current`, TARGET
	mkdir -p "$(dirname "$DESTDIR$2")"
	ln -sfn "$PREFIX/current/$1" "$DESTDIR$2"
}

is_link_to() { test "$(readlink "$2" || true)" = "$PREFIX/current/$1"; } # WHAT, below `current`, PATH

# The manual and the completions of the release that was built, or else of the one that `current` leads to; older ones
# have none.
shared_files() {
	from=${release:-$DESTDIR$PREFIX/current}
	test ! -d "$from/share" || (cd "$from" && find share -path share/doc -prune -o -type f -name '*oxidize*' -print)
}

path_of() { # WHAT, below `current`
	case $1 in
		share/man/*) echo "$MANDIR/${1#share/man/}" ;;
		share/bash-completion/*) echo "$COMPLETIONDIR/${1##*/}" ;;
		share/zsh/*) echo "$ZSHDIR/${1##*/}" ;;
		share/fish/*) echo "$FISHDIR/${1##*/}" ;;
	esac
}

# Everything outside a release that it needs.
put_units() {
	put_command
	for unit in $UNITS; do put "systemd/$unit" "$UNITDIR/$unit"; done
	put systemd/sysusers.conf "$SYSUSERSDIR/oxidize.conf"
	put systemd/tmpfiles.conf "$TMPFILESDIR/oxidize.conf"
	put_sysctls
	mkdir -p "$DESTDIR$CONFDIR"
	chmod 0751 "$DESTDIR$CONFDIR"
	if ! test -e "$DESTDIR$CONFDIR/server.toml"; then
		put systemd/server.toml "$CONFDIR/server.toml"
		chmod 0640 "$DESTDIR$CONFDIR/server.toml"
	fi
	if is_live && command -v systemd-sysusers > /dev/null; then
		systemd-sysusers "$SYSUSERSDIR/oxidize.conf"
		systemd-tmpfiles --create "$TMPFILESDIR/oxidize.conf"
		give_client_its_keys
	fi
	! has_systemd || systemctl daemon-reload
	report_old_user
}

key_files() { # CONFIGURATION: the key files that it names, as absolute paths
	sed -n 's/^[[:space:]]*\(private\|preshared\)_key_file[[:space:]]*=[[:space:]]*"\([^"]*\)".*/\2/p' "$1" 2> /dev/null |
		sed "s|^[^/]|$CONFDIR/&|"
}

# Release 0.1 had one user for both services. tmpfiles.conf gives away the files of the usual names, this the others, but
# none that the server uses too.
give_client_its_keys() {
	key_files "$CONFDIR/client.toml" | while read -r file; do
		test "$(stat -c %U "$file" 2> /dev/null)" = oxidize || continue
		if key_files "$CONFDIR/server.toml" | grep -Fqx "$file"; then
			echo "$file: server and client use it, and have a user each: give the client a copy of its own" >&2
		else
			chown oxidize-client:oxidize-client "$file"
		fi
	done
}

# A process is replaced by one of its own user only. A restart keeps socket, state and interface in systemd's store.
report_old_user() {
	has_systemd || return 0
	pid=$(systemctl show -p MainPID --value oxidize-client.service)
	test "$pid" != 0 && test "$(stat -c %U "/proc/$pid" 2> /dev/null)" = oxidize || return 0
	echo "oxidize-client.service has a user of its own now: systemctl restart oxidize-client"
}

changed_units() {
	! is_packaged || UNITDIR=/usr/lib/systemd/system
	for unit in $UNITS; do
		with_paths "systemd/$unit" | cmp -s - "$DESTDIR$UNITDIR/$unit" || echo "$unit"
	done
}

# Units and command are dpkg's then; releases beside those of the package are nobody's but `oxidize deploy`'s.
is_packaged() {
	test -z "$DESTDIR" || return 1
	case $(dpkg-query -W -f '${db:Status-Status}' oxidize 2> /dev/null) in
		'' | not-installed | config-files) return 1 ;;
	esac
}

refuse_packaged() {
	! is_packaged || {
		echo "the package oxidize is installed here: remove it first (apt-get remove oxidize), or ship this source as one" \
			"more release (oxidize deploy --source .)" >&2
		exit 1
	}
}

install_all() {
	build
	put_units
	point_current_at "$name"
	echo "$PREFIX/current -> releases/$name"
}

remove_links() { # FOLDER: those that lead through `current`
	test ! -d "$DESTDIR$1" || find "$DESTDIR$1" -maxdepth 1 -type l -lname "$PREFIX/current/*" -delete
}

uninstall_all() {
	if has_systemd; then
		systemctl disable --quiet --now $UNITS 2> /dev/null || true
	fi
	for unit in $UNITS; do rm -f "$DESTDIR$UNITDIR/$unit"; done
	rm -f "$DESTDIR$SYSUSERSDIR/oxidize.conf" "$DESTDIR$TMPFILESDIR/oxidize.conf" "$DESTDIR$SYSCTLDIR/60-oxidize.conf"
	for folder in "$BINDIR" "$MANDIR/man1" "$COMPLETIONDIR" "$ZSHDIR" "$FISHDIR"; do remove_links "$folder"; done
	rm -f "$DESTDIR$COMPLETIONDIR/oxidize" # of an older release: a file
	rm -f "$DESTDIR$PREFIX/current"
	rm -rf "$DESTDIR$PREFIX/releases" "$DESTDIR/var/lib/oxidize"
	! has_systemd || systemctl daemon-reload
	rm -f "$DESTDIR$PREFIX/.lock" # last: from here on another process may start
	rmdir "$DESTDIR$PREFIX" 2> /dev/null || true
	echo "removed; $CONFDIR and the users oxidize and oxidize-client are kept"
}

case "${1-}" in
	install)
		refuse_packaged
		lock "make install"
		install_all
		;;
	release)
		lock "make release"
		build
		echo "$PREFIX/releases/$name"
		;;
	units)
		refuse_packaged
		lock "make units"
		put_units
		;;
	changed-units) changed_units ;;
	uninstall)
		refuse_packaged
		lock "make uninstall"
		uninstall_all
		;;
	*) echo "usage: $0 install|release|units|changed-units|uninstall" >&2; exit 2 ;;
esac
