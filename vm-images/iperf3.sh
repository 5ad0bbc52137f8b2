#!/bin/sh
# iperf3 for the peers of a test, from the unpacked packages and with the libraries of these.
root=$(dirname "$0")/root
exec "$root/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2" \
	--library-path "$root/lib/x86_64-linux-gnu:$root/usr/lib/x86_64-linux-gnu" \
	"$root/usr/bin/iperf3" "$@"
