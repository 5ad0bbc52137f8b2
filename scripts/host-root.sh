#!/bin/sh
# host-root.sh SUITE: what an administrator of guests has, on top of build/SUITE-tests: libvirt with its
# units, its network and its own dependencies; and lintian. In build/SUITE-host. Made anew when the root
# below was. tests/integration/machine.py boots it.
set -eu

suite=$1
here=$(cd "$(dirname "$0")/.." && pwd)
# procps: the kill of libvirtd.service, which a minimal root lacks and no host does.
packages="libvirt-daemon-system libvirt-clients dnsmasq-base dbus procps lintian"
target=$here/build/$suite-host
log=$target.log
. "$here/scripts/roots.sh"

lock_test_root "$here/build"
sum=$(cat "$here/build/$suite-tests/.complete" "$0" "$here/scripts/root-mounts.sh" | sha256sum | cut -d ' ' -f 1)
lock_to_make 7 "$target" "$sum" || exit 0
rm -f "$target/.complete" # first: what is half removed is not whole
rm -rf "$target"
mkdir -p "$target"
echo "$suite: installing libvirt's daemon with its units, and lintian"
export LM_HERE="$here" LM_LOWER="$here/build/$suite-tests/upper:$here/build/$suite" LM_TARGET="$target"
export LM_PACKAGES="$packages"
own "$here/scripts/namespaces.sh" sh -eu -c '
. "$LM_HERE/scripts/root-mounts.sh"
mount_root "$LM_LOWER" "$LM_TARGET"
use_apt
run() { env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LANG=C.UTF-8 chroot . "$@"; }
run apt-get -qq update --error-on=any
run apt-get -qq install --no-install-recommends $LM_PACKAGES
# On a host services start, and packages are installed whole.
rm -rf usr/sbin/policy-rc.d etc/dpkg/dpkg.cfg.d/tests var/cache/apt/archives var/lib/apt/lists
' >"$log" 2>&1 || {
	reason=$("$here/scripts/reason.sh" "$log")
	echo "$suite: installing libvirt and lintian failed: $reason; all that was said is in $log" >&2
	exit 1
}
rm -rf "$log" "$target/work"
mkdir "$target/work"
echo "$sum" >"$target/.complete"
