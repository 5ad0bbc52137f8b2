#!/bin/sh
# fresh-machine.sh SUITE COMMAND...: run a command in a fresh clone of HEAD on a machine of that Debian,
# to which only git, make and the certificates have been added, as a user comes to it: in namespaces of
# its own, on a minimal root. `make setup`, `make demo` and `make test` are tried so on another Debian
# than this one. All that they write, the clone too, lies in a directory in build/ that is removed at
# the end.
set -eu

suite=$1
shift
here=$(cd "$(dirname "$0")/.." && pwd)
. "$here/scripts/roots.sh"
own "$here/packaging/root.sh" "$suite"
lock --shared 9 "$here/build/$suite"
work=$(mktemp -d "$here/build/fresh-$suite-XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
trap 'exit 130' INT TERM
# Not on the root's overlay: overlays that the clone makes cannot have their upper directory on one.
git clone --quiet "file://$here" "$work/linkmgr"
export LM_HERE="$here" LM_LOWER="$here/build/$suite" LM_WORK="$work"
own "$here/scripts/namespaces.sh" sh -eu -c '
. "$LM_HERE/scripts/root-mounts.sh"
mount_root "$LM_LOWER" "$LM_WORK"
use_apt
run() {
	set -- chroot . "$@"
	for name in $(env | sed -n "s/^\(PIP_[A-Z0-9_]*\)=.*/\1/p"); do
		eval "set -- \"$name=\${$name-}\" \"\$@\""
	done
	env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
		TERM=dumb "$@"
}
run apt-get -qq update
run env DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends \
	ca-certificates git make >var/log/fresh-machine 2>&1 || { cat var/log/fresh-machine >&2; exit 1; }
use_pip
mkdir root/linkmgr
mount --bind "$LM_WORK/linkmgr" root/linkmgr
run sh -c "cd /root/linkmgr && exec \"\$@\"" sh "$@"
' sh "$@"
