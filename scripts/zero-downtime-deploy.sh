#!/bin/sh
# Ship this checkout to the server that runs on this machine, or go back. The rule: nothing is decided here, for it is
# the installed `oxidize` that builds, rehearses, switches, watches, and goes back by itself when a release is bad.
set -eu

usage() {
	cat <<-END
		usage: $0 [OPTION...]             build a release of this checkout and put it into service
		       $0 --rollback [OPTION...]  put the release before into service again
		As root. The options are those of \`oxidize deploy\` and \`oxidize rollback\`; see their --help. In the environment:
		PREFIX, where \`make install\` has put Oxidize (/opt/oxidize).
	END
}

PREFIX=${PREFIX:-/opt/oxidize}
source=$(cd "$(dirname "$0")/.." && pwd -P)
command=deploy
# Each argument is taken from the front and put back at the end, which leaves those with spaces in them whole.
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
	echo "$oxidize is not there: nothing is installed yet; once: sudo make -C '$source' install" >&2
	exit 1
fi
# A release that is broken cannot take itself back; any other one can.
works() { "$1" releases --prefix "$PREFIX" --json > /dev/null 2>&1; }
if ! works "$oxidize"; then
	for other in "$PREFIX"/releases/*/bin/oxidize; do
		! works "$other" || oxidize=$other # in the end the newest
	done
	echo "$PREFIX/current is broken; this is done by $oxidize" >&2
fi
case $command in
	deploy) exec "$oxidize" deploy --source "$source" --prefix "$PREFIX" "$@" ;;
	rollback) exec "$oxidize" rollback --prefix "$PREFIX" "$@" ;;
esac
