#!/bin/sh
# root.sh SUITE [DIRECTORY]: make a minimal root of that Debian (bookworm, trixie, sid) there, by default
# build/SUITE, for the tests of the package. The mirror is the one that the machine's apt already uses
# for its own Debian. Does nothing when this script, as it is now, has made it already: the scripts that
# it runs decide nothing of what is in it. Mounts are made in a mount namespace of their own.
set -eu

suite=$1
root=$(cd "$(dirname "$0")/.." && pwd)
target=${2:-$root/build/$suite}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
# Besides a minimal Debian: what the package depends on, and ip for the tests' devices.
include=systemd,systemd-sysv,python3,iproute2

log=$target.log
. "$root/scripts/roots.sh"

mkdir -p "$(dirname "$target")"
sum=$(sha256sum <"$0" | cut -d ' ' -f 1)
lock_to_make 9 "$target" "$sum" || exit 0
mirror=$("$root/scripts/debian.sh" mirror)
if [ -z "$mirror" ]; then
	echo "$suite: apt knows no mirror of Debian, from which $suite could come" >&2
	exit 1
fi
rm -f "$target/.complete" # first: what is half removed is not whole
rm -rf "$target"
mkdir -p "$target"
echo "$suite: making a minimal root in $target"
own "$root/scripts/namespaces.sh" debootstrap --variant=minbase --merged-usr \
	--keyring="$keyring" --include="$include" "$suite" "$target" "$mirror" >"$log" 2>&1 || {
	echo "$suite: making the root failed: $("$root/scripts/reason.sh" "$log"); all that was said is in $log" >&2
	exit 1
}
# debootstrap does not look at the date: a mirror may keep the index of a suite that is not released.
until=$(cat "$target"/var/lib/apt/lists/*Release 2>/dev/null | sed -n 's/^Valid-Until: //p' | head -n 1)
if [ -n "$until" ] && [ "$(date -d "$until" +%s)" -lt "$(date +%s)" ]; then
	echo "$suite: the mirror's index was valid until $until; using it all the same"
fi
rm -rf "$target/var/cache/apt/archives" "$target/var/lib/apt/lists" "$log"
echo "$sum" >"$target/.complete"
