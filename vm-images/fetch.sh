#!/bin/sh
# fetch.sh DIRECTORY PACKAGE...: unpack Debian packages into DIRECTORY, without installing them, and
# whatever libraries and kernel they depend on, under the names that this Debian has for these.
# Versions are the newest that the machine's apt knows; its lists are read again if they do not do.
set -eu
root=$1
shift
rm -rf "$root"
# Some Debians have it in /lib and some in /usr/lib: here it is the same, as it is when installed.
mkdir -p "$root/debs" "$root/usr/bin" "$root/usr/sbin" "$root/usr/lib" "$root/usr/lib64"
for folder in bin sbin lib lib64; do
	ln -s "usr/$folder" "$root/$folder"
done
cd "$root/debs"

download() {
	# As if nothing were installed: what the machine has is in the plan, too.
	plan=$(apt-get -s -qq --no-install-recommends -o Dir::State::status=/dev/null install "$@") &&
		# As root and not as _apt, who may not write here.
		apt-get -qq -o APT::Sandbox::User=root download "$@" \
			$(echo "$plan" | sed -nE 's/^Inst ((z?lib|linux-)[^ ]*).*/\1/p')
}

download "$@" 2>/dev/null || { apt-get -qq update && download "$@"; }
for deb in *.deb; do
	dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink -C ..
done
cd ..
rm -rf debs
