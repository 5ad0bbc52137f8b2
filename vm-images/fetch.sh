#!/bin/sh
# fetch.sh DIRECTORY META PACKAGE...: unpack Debian packages into DIRECTORY, without installing them.
# META is a package of which only what it depends on is wanted, such as linux-image-cloud-amd64.
# Versions are the newest that the machine's apt knows; its lists are read again if they do not do.
set -eu
root=$1 meta=$2
shift 2
rm -rf "$root"
mkdir -p "$root/debs"
cd "$root/debs"

download() {
	real=$(apt-cache depends "$meta" | sed -n 's/^ *Depends: //p')
	# As root and not as _apt, who may not write here.
	[ "$real" ] && apt-get -qq -o APT::Sandbox::User=root download $real "$@"
}

download "$@" 2>/dev/null || { apt-get -qq update && download "$@"; }
for deb in *.deb; do
	dpkg-deb --extract "$deb" ..
done
cd ..
rm -rf debs
