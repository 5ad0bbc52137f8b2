#!/bin/sh
# debian.sh QUESTION: what depends on the distribution that this machine runs, as $OS_RELEASE
# (/etc/os-release) names it. A question with no answer here has an empty one.
#
#   own       the suite of this Debian, whose root the package that is built here is tried in
#   other     the generation in whose root the marked tests run as well: on Debian 12 Debian 13; on
#             later ones Debian 12, which lacks the most and, other than sid, does not change
#   newer     the suite from which a newer QEMU than this Debian's is unpacked
#   mirror    the mirror that apt uses for this Debian
#   setup     a sentence if this is not a distribution that is tested; status 1 if `make setup` cannot
#             work here
#   roots     a sentence and status 1 if this is no Debian, of which a root could be made
set -eu

release=${OS_RELEASE:-/etc/os-release}
ID='' ID_LIKE='' VERSION_ID='' VERSION_CODENAME='' PRETTY_NAME=''
[ ! -r "$release" ] || . "$release"
name=${PRETTY_NAME:-this system, without $release,}
tested="Debian 12, Debian 13 or sid on amd64"
# testing and sid have the same codename and no number; to apt one of them is sid.
case $ID:$VERSION_ID in
debian:) own=sid ;;
debian:*) own=$VERSION_CODENAME ;;
*) own= ;;
esac

case $1 in
own) echo "$own" ;;
other)
	case $own in
	'') ;;
	bookworm) echo trixie ;;
	*) echo bookworm ;;
	esac
	;;
newer)
	case $own in
	bookworm | trixie) echo "$own-backports" ;;
	esac
	;;
mirror)
	[ -z "$own" ] || apt-get indextargets --format '$(CODENAME) $(SITE)' 'Created-By: Packages' \
		'Component: main' | sed -nE "s/^($own|$VERSION_CODENAME) //p" | head -n 1
	;;
setup)
	refuse() {
		echo "setup: $name $1. Use $tested; a virtual machine does." >&2
		exit 1
	}
	command -v apt-get >/dev/null && command -v dpkg >/dev/null ||
		refuse "has no apt, which installs the packages of packages.txt"
	machine=$(dpkg --print-architecture)
	[ "$machine" = amd64 ] || refuse "is for $machine, and the guest of the tests and the demo for amd64"
	case " $ID $ID_LIKE " in
	*" debian "*) ;;
	*) refuse "is no Debian, whose names of packages are in packages.txt" ;;
	esac
	case $own in
	bookworm | trixie | sid) ;;
	*)
		[ -z "$own" ] || [ "${VERSION_ID%%.*}" -ge 12 ] || refuse "has no Python 3.11"
		echo "setup: $name is not tested; what is: $tested. Where its packages have Debian's names make setup and make test-unit work; make demo needs Debian's kernel from apt too, make test Debian's mirror." >&2
		;;
	esac
	;;
roots)
	[ -n "$own" ] || {
		echo "roots: $name is not Debian itself, whose mirror the roots for tests come from. Use $tested; make test-unit needs none." >&2
		exit 1
	}
	;;
*)
	echo "debian.sh: own, other, newer, mirror, setup or roots, not $1" >&2
	exit 2
	;;
esac
