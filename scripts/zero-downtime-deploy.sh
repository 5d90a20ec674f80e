#!/bin/sh
# Deploy this checkout to the server on this machine, or roll back. The rule: this script decides nothing: the installed
# `oxidize` builds, rehearses, switches, watches, and rolls back by itself if a release is bad.
set -eu

usage() {
	cat <<-END
		usage: $0 [OPTION...]             build a release of this checkout and deploy it
		       $0 --rollback [OPTION...]  roll back to the previous release
		Run it as root. The options are those of \`oxidize deploy\` and \`oxidize rollback\`; see their --help. The
		environment variable PREFIX is the folder of the installation (/opt/oxidize).
	END
}

PREFIX=${PREFIX:-/opt/oxidize}
source=$(cd "$(dirname "$0")/.." && pwd -P)
command=deploy
# Each argument is moved from the front to the end, which keeps arguments with spaces whole.
for argument in "$@"; do
	shift
	case $argument in
		-h | --help)
			usage
			exit 0
			;;
		--rollback) command=rollback ;;
		*) set -- "$@" "$argument" ;;
	esac
done

oxidize=$PREFIX/current/bin/oxidize
if ! test -x "$oxidize"; then
	echo "$oxidize does not exist: nothing is installed yet; run once: sudo make -C '$source' install" >&2
	exit 1
fi
# A broken release cannot roll itself back; any other release can.
works() { "$1" releases --prefix "$PREFIX" --json > /dev/null 2>&1; }
if ! works "$oxidize"; then
	broken=$oxidize
	for other in "$PREFIX"/releases/*/bin/oxidize; do
		! works "$other" || oxidize=$other # the last one is the newest
	done
	# Where none works, the broken one says why itself.
	test "$oxidize" = "$broken" || echo "$PREFIX/current is broken; using $oxidize" >&2
fi
case $command in
	deploy) exec "$oxidize" deploy --source "$source" --prefix "$PREFIX" "$@" ;;
	rollback) exec "$oxidize" rollback --prefix "$PREFIX" "$@" ;;
esac
