#!/bin/sh
# bookworm.sh [DIRECTORY]: make a minimal Debian 12 root there, by default build/bookworm, for the
# tests of the package. The mirror is the one that the machine's apt already uses for Debian 12.
# Does nothing when it is there already. Mounts are made in a mount namespace of their own.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
target=${1:-$root/build/bookworm}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
# Besides a minimal Debian: what the package depends on, and ip for the tests' devices.
include=systemd,systemd-sysv,python3,iproute2

if [ -e "$target/.complete" ]; then
	exit 0
fi
mirror=$(apt-get indextargets --format '$(CODENAME) $(SITE)' 'Created-By: Packages' \
	'Component: main' | sed -n 's/^bookworm //p' | head -n 1)
if [ -z "$mirror" ]; then
	echo "bookworm: apt knows no mirror of Debian 12 (bookworm)" >&2
	exit 1
fi
rm -rf "$target"
mkdir -p "$target"
echo "bookworm: making a Debian 12 in $target"
unshare --mount --pid --fork --kill-child debootstrap --variant=minbase --merged-usr \
	--keyring="$keyring" --include="$include" bookworm "$target" "$mirror" >"$target.log" 2>&1 || {
	tail -n 20 "$target.log" >&2
	exit 1
}
rm -rf "$target/var/cache/apt/archives" "$target/var/lib/apt/lists" "$target.log"
touch "$target/.complete"
