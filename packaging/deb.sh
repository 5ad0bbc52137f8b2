#!/bin/sh
# deb.sh TREE DIRECTORY: make a Debian package of what install.sh put into TREE (PREFIX=/usr), in
# DIRECTORY, for the distribution that it runs on. Prints its path. The same tree gives the same
# package, byte for byte.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
tree=$1
into=$2
upstream=$(sed -n 's/^version = "\(.*\)"/\1/p' "$here/../pyproject.toml")
changelog=$here/debian/changelog
version=$(sed -n '1s/.*(\(.*\)).*/\1/p' "$changelog")
if [ "${version%-*}" != "$upstream" ]; then
	echo "deb: $changelog is about $version, pyproject.toml about $upstream" >&2
	exit 1
fi
# Each distribution has a package of its own, for its Python. A later distribution's is the newer one,
# so an upgrade of the distribution takes it; the next one's, which has no number yet, is the newest.
distribution=$(. /etc/os-release && case $ID in
debian) echo "${VERSION_ID:+~deb${VERSION_ID}u1}" ;;
*) echo "~$ID${VERSION_ID:-}" ;;
esac)
version=$version$distribution
architecture=$(dpkg --print-architecture)
python=$("$tree/usr/lib/linkmgr/bin/python3" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
next=${python%.*}.$((${python#*.} + 1))
package=$into/linkmgr_${version}_$architecture.deb
epoch=${SOURCE_DATE_EPOCH:-$(date -d "$(sed -n 's/^ -- .*>  //p' "$changelog" | head -n 1)" +%s)}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -a "$tree" "$work/root"
mkdir "$work/root/DEBIAN"
rm "$work/root/usr/lib/linkmgr/files" # dpkg keeps its own list
for script in preinst postinst prerm postrm; do
	install -m 755 "$here/debian/$script" "$work/root/DEBIAN/$script"
done
sed "1s/(.*)/($version)/" "$changelog" >"$work/changelog"
gzip -9n "$work/changelog"
install -D -m 644 "$work/changelog.gz" "$work/root/usr/share/doc/linkmgr/changelog.Debian.gz"
install -D -m 644 "$here/debian/lintian-overrides" "$work/root/usr/share/lintian/overrides/linkmgr"
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
 A QEMU guest gets its network cable when it boots, and can never exchange
 it. linkmgr makes the cable a thing of its own: at run time a NIC is plugged
 into a network, unplugged, and plugged into another one of another kind, and
 stays the same device in the guest.
 .
 This package has a virtual environment of its own on the system's Python.
CONTROL
find "$work/root" -newermt "@$epoch" -exec touch -h -d "@$epoch" {} +
# The default level takes 25 seconds of CPU, for a package that is a sixth smaller.
SOURCE_DATE_EPOCH=$epoch dpkg-deb --root-owner-group -Zxz -z1 --build "$work/root" "$package" >/dev/null
echo "$package"
