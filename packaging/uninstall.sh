#!/bin/sh
# uninstall.sh: remove what install.sh has put under $DESTDIR$PREFIX and into $DESTDIR/etc. Stops the
# service first, if it is this one that runs; guests stay on their cables. The state, the
# configuration and the group stay, and so does libvirt's hook if it was edited or is a package's.
set -eu

destdir=${DESTDIR:-}
prefix=${PREFIX:-/usr/local}
libdir=$prefix/lib/linkmgr
from=$destdir$libdir
hook=/etc/libvirt/hooks/qemu.d/50-linkmgr
if [ ! -e "$from/files" ]; then
	echo "uninstall: nothing of linkmgr's is installed in $destdir$prefix, or by an older version:" \
		"'make install' again, then 'make uninstall'" >&2
	exit 1
fi
units=$(sed -n 's|.*/lib/systemd/system/||p' "$from/files")
if [ -z "$destdir" ] && [ -d /run/systemd/system ] &&
	[ "$(systemctl show --value -p FragmentPath linkmgr.service)" = \
		"$prefix/lib/systemd/system/linkmgr.service" ]; then
	# shellcheck disable=SC2086 # the units' names are words
	systemctl --quiet disable --now $units 2>/dev/null || true
fi
packaged() {
	[ -z "$destdir" ] && command -v dpkg-query >/dev/null && dpkg-query --search "$1" >/dev/null 2>&1
}
while read -r file; do
	if packaged "$file"; then
		continue
	elif [ "$file" = "$hook" ] && ! cmp -s "$destdir$hook" "$from/hooks/qemu"; then
		[ ! -e "$destdir$hook" ] || echo "uninstall: $destdir$hook was edited, and stays" >&2
		continue
	fi
	rm -f "$destdir$file"
done <"$from/files"
rm -rf "$from"
# Other directories are not linkmgr's alone, even where they are empty now.
rmdir "$destdir$prefix/share/doc/linkmgr" 2>/dev/null || true
if [ -z "$destdir" ] && [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
