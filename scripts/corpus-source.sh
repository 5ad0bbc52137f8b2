#!/bin/sh
# corpus-source.sh [SUITE...]: the domains of libvirt's own tests, and the schema of that libvirt, from
# the source packages of these Debians, by default bookworm and trixie, in build/corpus/SUITE. sid's is
# fetched when it is asked for, and the mirror has it.
#
# Nothing of the machine's apt is touched: lists, caches and sources are ones of its own. The mirror is
# the one that the machine's apt uses for its own Debian. Does nothing where it is there already.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
corpus=$root/build/corpus
sum=$(sha256sum <"$0" | cut -d ' ' -f 1)

fetch() {
	suite=$1
	target=$corpus/$suite
	[ "$(cat "$target/.complete" 2>/dev/null)" != "$sum" ] || return 0
	mirror=$("$root/scripts/debian.sh" mirror)
	if [ -z "$mirror" ]; then
		echo "corpus: apt knows no mirror of Debian, from which libvirt's source could come" >&2
		exit 1
	fi
	rm -rf "$target.new"
	apt=$target.new/apt
	mkdir -p "$apt/state/lists/partial" "$apt/cache/archives/partial" "$apt/sources" "$apt/source"
	touch "$apt/status"
	echo "deb-src [signed-by=$keyring] $mirror $suite main" >"$apt/sources/libvirt.list"
	# A mirror may keep the index of a suite that is not released past its date.
	cat >"$apt/apt.conf" <<-CONF
		Dir::State "$apt/state";
		Dir::State::status "$apt/status";
		Dir::Cache "$apt/cache";
		Dir::Etc::sourcelist "/dev/null";
		Dir::Etc::sourceparts "$apt/sources";
		Acquire::Languages "none";
		Acquire::Check-Valid-Until "false";
		APT::Sandbox::User "root";
		#clear APT::Update::Post-Invoke;
		#clear APT::Update::Post-Invoke-Success;
	CONF
	echo "corpus: libvirt's test domains of $suite"
	# Of its files only the tarball is needed, and a mirror may lack the others. apt leaves a file
	# there once its checksum is the one of the signed index.
	(
		cd "$apt/source"
		apt-get -qq -c "$apt/apt.conf" update &&
			apt-get -qq -c "$apt/apt.conf" --only-source --download-only source libvirt
	) >"$target.log" 2>&1 || true
	tarball=$(find "$apt/source" -name 'libvirt_*.orig.tar.[gx]z')
	if [ -z "$tarball" ]; then
		cat "$target.log" >&2
		echo "corpus: apt's mirror ($mirror) did not give the source of libvirt in $suite" >&2
		exit 1
	fi
	# apt itself decompresses: a minimal Debian has no xz.
	/usr/lib/apt/apt-helper cat-file "$tarball" |
		tar -x -C "$target.new" --strip-components=1 --wildcards \
		'*/tests/*.xml' '*/src/conf/schemas/*.rng'
	rm -rf "$apt" "$target.log"
	echo "$sum" >"$target.new/.complete"
	rm -rf "$target"
	mv "$target.new" "$target"
}

mkdir -p "$corpus"
for each in ${*:-bookworm trixie}; do
	fetch "$each"
done
