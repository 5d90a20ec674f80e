#!/bin/sh
# The work of `make deb`: a Debian package of one whole release, with the interpreter's byte-code, in dist/. The rule: the
# release is an ordinary one, built by `systemd/install.sh`, and dpkg owns only a copy of it, below /usr/lib/oxidize:
# dpkg removes the files of the old version before the new one is configured, while the server still runs from them. The
# maintainer scripts put releases below /opt/oxidize, where `oxidize deploy` ships them.
#
# The same commit gives the same package, byte for byte, with the same tools at the same path of the source.
# The environment: INSTALL_PYTHON; DIST, the folder of the package; SOURCE_DATE_EPOCH instead of the time of the commit.
# The locked versions of the build tools are read from standard input. Sources: deb(5), deb-control(5), deb-version(7), dpkg-shlibdeps(1), reproducible-builds.org.
set -eu
umask 022
cd "$(dirname "$0")/.."

PREFIX=/opt/oxidize
SHIPPED=/usr/lib/oxidize # with one folder: the release
UNITDIR=/usr/lib/systemd/system

git_() { git -c safe.directory="$(pwd -P)" "$@" 2> /dev/null; }

# The time of the commit, so that a package of it can be made again; now, where the source is no commit.
source_time() {
	if test -z "$(git_ status --porcelain || echo none)"; then git_ log -1 --format=%ct; else date +%s; fi
}

# The package of that name; the unversioned link is for another one after an upgrade of the distribution.
python=$(readlink -f "${INSTALL_PYTHON:-/usr/bin/python3}")
export INSTALL_PYTHON="$python"
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(source_time)}"
# Byte-code has sets in the order of their hashes; debugging information, and the identity that is made of it, name the
# folder of the build.
export PYTHONHASHSEED=0 TZ=UTC LC_ALL=C.UTF-8 CFLAGS=-g0 LDFLAGS=-Wl,--build-id=none

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
stage=$work/stage

PREFIX=$PREFIX DESTDIR=$stage BINDIR=/usr/bin MANDIR=/usr/share/man COMPLETIONDIR=/usr/share/bash-completion/completions \
	ZSHDIR=/usr/share/zsh/vendor-completions FISHDIR=/usr/share/fish/vendor_completions.d UNITDIR=$UNITDIR \
	SYSUSERSDIR=/usr/lib/sysusers.d TMPFILESDIR=/usr/lib/tmpfiles.d SYSCTLDIR=/usr/lib/sysctl.d CONFDIR=/etc/oxidize \
	sh systemd/install.sh install > /dev/null
release=$(basename "$stage$PREFIX"/releases/*)
mkdir -p "$stage$SHIPPED"
mv "$stage$PREFIX/releases/$release" "$stage$SHIPPED/$release"
rm -r "$stage/opt"

# What `make install` links through the release that serves is a file here, which dpkg knows.
for link in $(find "$stage/usr/share" -type l -lname "$PREFIX/current/share/*"); do
	source=$(readlink "$link")
	rm "$link"
	cp "$stage$SHIPPED/$release/${source#"$PREFIX"/current/}" "$link"
done
gzip -9n "$stage"/usr/share/man/man1/*.1

# Whoever installs a package has not configured a server: it starts nothing before that.
doc=$stage/usr/share/doc/oxidize
mkdir -p "$doc/examples"
cp examples/*.toml "$doc/examples"
install -m 644 "$stage/etc/oxidize/server.toml" "$doc/examples/first-server.toml"
rm -r "$stage/etc" # a folder that outlives the package: postinst makes it
cp debian/copyright "$doc/copyright"
gzip -9nc CHANGELOG.md > "$doc/changelog.gz"

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
# As the release is named: a later build of the same version is newer. A revision has "-dirty" where it was changed.
stamp=$(echo "${release#"$version"-}" | tr - .)
architecture=$(dpkg --print-architecture)
version=$version+$stamp

# The libraries that the compiled modules need, beside those that they bring along.
mkdir -p "$work/debian"
printf 'Source: oxidize\n\nPackage: oxidize\nArchitecture: any\n' > "$work/debian/control"
libraries=$(cd "$work" && find "$stage$SHIPPED" -name '*.so' -exec dpkg-shlibdeps -O --ignore-missing-info {} + 2> "$work/shlibdeps.log") || {
	cat "$work/shlibdeps.log" >&2
	exit 1
}

control=$stage/DEBIAN
mkdir "$control"
fill() { # SOURCE TARGET MODE
	# The functions of `make install` that the package needs, too.
	sed -n '/^advertised() {/,/^}/p' systemd/install.sh > "$work/functions"
	units=$(sed -n 's/^UNITS="\(.*\)"$/\1/p' systemd/install.sh)
	sed -e "s|@UNITS@|$units|g" -e "s|@VERSION@|$version|g; s|@RELEASE@|$release|g; s|@ARCHITECTURE@|$architecture|g; s|@PYTHON@|$(basename "$python")|g" \
		-e "s|@SHLIBS@|${libraries#shlibs:Depends=}|g; s|@INSTALLED_SIZE@|$(du -sk "$stage" | cut -f1)|g" \
		-e "/^@FUNCTIONS@\$/{
			r $work/functions
			d
		}" "$1" > "$2"
	chmod "$3" "$2"
}
fill debian/control.in "$control/control" 644
for script in postinst prerm postrm; do fill "debian/$script" "$control/$script" 755; done
(cd "$stage" && find usr -type f -print0 | sort -z | xargs -0 md5sum) > "$control/md5sums"

dist=${DIST:-dist}
mkdir -p "$dist"
package=$dist/oxidize_${version}_$architecture.deb
# Everything that was made just now has the time of the source.
dpkg-deb --root-owner-group -Zxz --build "$stage" "$package" > /dev/null
echo "$package"
