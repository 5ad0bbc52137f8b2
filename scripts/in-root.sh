#!/bin/sh
# in-root.sh SUITE COMMAND...: run a command in the root that scripts/test-root.sh makes, with this
# checkout as /src, in namespaces of its own. What it writes is gone at the end: nothing of the root,
# of the checkout or of this machine can be written. /out is the directory $OUT, if that is set.
set -eu

suite=$1
shift
here=$(cd "$(dirname "$0")/.." && pwd)
tests=$here/build/$suite-tests
. "$here/scripts/roots.sh"
lock_test_root "$here/build" # while something runs there the root is not made anew
export LM_HERE="$here" LM_LOWER="$tests/upper:$here/build/$suite" LM_ROOT="$tests/root" LM_OUT="${OUT:-}"
exec "$here/scripts/namespaces.sh" sh -eu -c '
exec 9<&- 8<&-
. "$LM_HERE/scripts/root-mounts.sh"
mount -t tmpfs -o mode=755 tmpfs "$LM_ROOT"
mount_root "$LM_LOWER" "$LM_ROOT"
mkdir -p src "$LM_ROOT/src-upper" "$LM_ROOT/src-work"
mount -t overlay -o "lowerdir=$LM_HERE,upperdir=$LM_ROOT/src-upper,workdir=$LM_ROOT/src-work" overlay src
if [ -n "$LM_OUT" ]; then
	mkdir -p out
	mount --bind "$LM_OUT" out
fi
exec env -i PATH=/opt/venv/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb \
	${LINKMGR_QEMU:+LINKMGR_QEMU="$LINKMGR_QEMU"} \
	chroot . sh -c "cd /src && exec \"\$@\"" sh "$@"
' sh "$@"
