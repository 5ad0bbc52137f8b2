#!/bin/sh
# deb-in-root.sh SUITE [COMMIT]: build the package of that Debian in its root (scripts/test-root.sh), with
# the scripts that `make deb` runs, into build/packages/SUITE. With COMMIT that of an older linkmgr, into
# build/packages/SUITE/COMMIT, unless it is there.
set -eu

suite=$1
commit=${2:-}
here=$(cd "$(dirname "$0")/.." && pwd)
out=$here/build/packages/$suite${commit:+/$commit}
. "$here/scripts/roots.sh"
lock_test_root "$here/build"
python=$(cat "$here/build/$suite-tests/python")
mkdir -p "$out" "$here/build/packages/wheels"
lock --exclusive 7 "$out"
if [ -n "$commit" ] && [ -e "$out/.complete" ]; then
	exit 0
fi
rm -rf "$out/source" "$out"/linkmgr_*.deb "$out/.complete"
tree=/src
locks=$here/packaging
if [ -n "$commit" ]; then
	mkdir "$out/source"
	own git -C "$here" archive "$commit" | tar -x -C "$out/source"
	tree=/out/source
	locks=$out/source/packaging
fi
echo "$suite: building the package${commit:+ of $commit} for Python $python"
# Wheels are had from here, where pip is set up.
name=build/packages/wheels/$(cat "$locks"/*.lock | { echo "$python" && cat; } | sha256sum | cut -c 1-16)
wheels=$here/$name
lock --exclusive 6 "$wheels" # several packages have the same
if [ ! -e "$wheels/.complete" ]; then
	rm -rf "$wheels"
	mkdir -p "$wheels"
	for lock in requirements build-requirements; do
		own "$here/.venv/bin/pip" download --quiet --disable-pip-version-check --no-input --no-deps \
			--require-hashes --only-binary :all: --implementation cp --python-version "$python" \
			--dest "$wheels" -r "$locks/$lock.lock" 2>"$out/log" || {
			cat "$out/log" >&2
			exit 1
		}
	done
	touch "$wheels/.complete"
fi
exec 6>&-
own env OUT="$out" "$here/scripts/in-root.sh" "$suite" sh -eu -c '
	touch "$2/.complete" # for install.sh: it is all there, whenever the lock was checked out
	DESTDIR=/tmp/tree PREFIX=/usr WHEELS=$2 "$1/packaging/install.sh"
	"$1/packaging/deb.sh" /tmp/tree /out
' sh "$tree" "/src/$name" >"$out/log" 2>&1 || {
	tail -n 20 "$out/log" >&2
	exit 1
}
rm -rf "$out/source" "$out/log"
touch "$out/.complete"
