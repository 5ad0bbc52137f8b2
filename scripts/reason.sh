#!/bin/sh
# reason.sh LOG: the line of a log of apt's, debootstrap's or pip's that says why they failed, and what to do
# where that is known. A disk that is full is the reason of all that comes after it.
set -eu
reason=$(
	grep -m 1 -o 'No space left on device' "$1" ||
		grep -m 1 -E '^(E|ERROR): ' "$1" | sed 's/^[A-Z]*: //' | grep . ||
		tail -n 1 "$1"
)
case $reason in
*'No such script: '*) todo="use bookworm, trixie or sid, or a debootstrap that knows this suite" ;;
*'signed by unknown key'* | *'is not signed'*) todo="apt update, then apt install debian-archive-keyring" ;;
*'Unable to correct problems'* | *'Unable to satisfy dependencies'*)
	todo="these packages do not fit each other today, as happens in sid: try again another day"
	;;
*) todo= ;;
esac
echo "$reason${todo:+; to do: $todo}"
