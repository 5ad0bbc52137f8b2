#!/bin/sh
# Prints the packages of a list (one a line, # comments) that are not installed on this Debian.
set -eu
sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "$1" | while read -r package; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || printf '%s ' "$package"
done
