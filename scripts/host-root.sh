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
sum=$(echo "$packages" | cat - "$here/build/$suite-tests/.complete" "$0" | sha256sum | cut -d ' ' -f 1)
if [ "$(cat "$target/.complete" 2>/dev/null)" = "$sum" ]; then
	exit 0
fi
rm -rf "$target"
mkdir -p "$target/upper" "$target/work" "$target/root"
echo "$suite: installing libvirt's daemon with its units, and lintian"
export LM_LOWER="$here/build/$suite-tests/upper:$here/build/$suite" LM_TARGET="$target" LM_PACKAGES="$packages"
unshare --mount --pid --fork --kill-child sh -eu -c '
mount --make-rprivate /
mount -t overlay -o "lowerdir=$LM_LOWER,upperdir=$LM_TARGET/upper,workdir=$LM_TARGET/work" \
	overlay "$LM_TARGET/root"
cd "$LM_TARGET/root"
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
run() { env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LANG=C.UTF-8 chroot . "$@"; }
run apt-get -qq update
run apt-get -qq install --no-install-recommends $LM_PACKAGES
# On a host services start, and packages are installed whole.
rm -rf usr/sbin/policy-rc.d etc/dpkg/dpkg.cfg.d/tests var/cache/apt/archives var/lib/apt/lists
' >"$target/log" 2>&1 || {
	tail -n 20 "$target/log" >&2
	exit 1
}
rm -rf "$target/log" "$target/work"
mkdir "$target/work"
echo "$sum" >"$target/.complete"
