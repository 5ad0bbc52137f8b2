#!/bin/sh
# deb.sh TREE DIRECTORY: make a Debian package of what install.sh put into TREE (PREFIX=/usr), in
# DIRECTORY. Prints its path. The same tree gives the same package, byte for byte.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
tree=$1
into=$2
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$here/../pyproject.toml")
architecture=$(dpkg --print-architecture)
python=$("$tree/usr/lib/linkmgr/bin/python3" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
next=${python%.*}.$((${python#*.} + 1))
package=$into/linkmgr_${version}_$architecture.deb

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -a "$tree" "$work/root"
mkdir "$work/root/DEBIAN"
rm "$work/root/usr/lib/linkmgr/files" # dpkg keeps its own list
for script in preinst postinst prerm postrm; do
	install -m 755 "$here/debian/$script" "$work/root/DEBIAN/$script"
done
(cd "$work/root" && find etc -type f | sort | sed 's|^|/|') >"$work/root/DEBIAN/conffiles"
# libvirt's profile of guests may come, or change, after linkmgr.
echo 'interest-noawait /etc/apparmor.d/abstractions/libvirt-qemu' >"$work/root/DEBIAN/triggers"
cat >"$work/root/DEBIAN/control" <<CONTROL
Package: linkmgr
Version: $version
Architecture: $architecture
Maintainer: linkmgr <linkmgr@localhost>
Installed-Size: $(du -sk --apparent-size "$work/root/usr" | cut -f 1)
Depends: python3 (>= $python), python3 (<< $next~), libc6, systemd (>= 246)
Recommends: python3-libvirt
Suggests: qemu-system-x86 (>= 1:4.2), libvirt-daemon-system, openvswitch-switch
Section: net
Priority: optional
Description: network cables of running QEMU guests
 A QEMU guest gets its network cable when it boots, and can never exchange it. linkmgr makes the
 cable a thing of its own: at run time a NIC is plugged into a network, unplugged, and plugged into
 another one of another kind, and stays the same device in the guest.
 .
 This package has a virtual environment of its own on the system's Python.
CONTROL
find "$work/root" -newermt "@${SOURCE_DATE_EPOCH:-0}" -exec touch -h -d "@${SOURCE_DATE_EPOCH:-0}" {} +
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-0} \
	dpkg-deb --root-owner-group -Zxz --build "$work/root" "$package" >/dev/null
echo "$package"
