#!/bin/sh
# reason.sh LOG: the line of a log of apt's, debootstrap's or pip's that says why they failed. A disk that
# is full is the reason of all that comes after it.
set -eu
grep -m 1 -o 'No space left on device' "$1" ||
	grep -m 1 -E '^(E|ERROR): ' "$1" | sed 's/^[A-Z]*: //' | grep . ||
	tail -n 1 "$1"
