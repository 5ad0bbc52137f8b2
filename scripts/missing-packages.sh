#!/bin/sh
# Prints the packages of a list (one a line, # comments) that are not installed on this Debian. One
# with a ? behind it is left out where this Debian has none of that name.
set -eu
sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "$1" | while read -r package where; do
    if [ "${where:-}" = "?" ] && ! apt-cache show "$package" >/dev/null 2>&1; then continue; fi
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || printf '%s ' "$package"
done
