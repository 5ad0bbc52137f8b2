#!/bin/sh
# test-root.sh SUITE: what the tests need, on top of the minimal root build/SUITE: the packages of
# packages.txt and a virtual environment in /opt/venv, in build/SUITE-tests. Made anew when one of its
# inputs has changed. scripts/in-root.sh runs something there.
set -eu

suite=$1
here=$(cd "$(dirname "$0")/.." && pwd)
target=$here/build/$suite-tests
inputs="packages.txt requirements.lock pyproject.toml scripts/test-root.sh scripts/root-mounts.sh \
	scripts/missing-packages.sh packaging/root.sh"
sum=$(cd "$here" && cat $inputs | sha256sum | cut -d ' ' -f 1)
if [ "$(cat "$target/.complete" 2>/dev/null)" = "$sum" ]; then
	exit 0
fi
"$here/packaging/root.sh" "$suite"
rm -rf "$target"
mkdir -p "$target/upper" "$target/work" "$target/root" "$target/wheels"

say() { echo "$suite: $*"; }
say "installing the packages of packages.txt"
cat >"$target/install" <<'SCRIPT'
set -eu
. "$3/scripts/root-mounts.sh"
mount_root "$1" "$2"
use_apt
cp "$3/packages.txt" "$3/scripts/missing-packages.sh" tmp
printf 'path-exclude=/usr/share/%s/*\n' doc man locale >etc/dpkg/dpkg.cfg.d/tests
printf '#!/bin/sh\nexit 101\n' >usr/sbin/policy-rc.d
chmod 755 usr/sbin/policy-rc.d
run() { env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LANG=C.UTF-8 chroot . "$@"; }
run apt-get -qq update
run sh -c 'apt-get -qq install --no-install-recommends $(sh /tmp/missing-packages.sh /tmp/packages.txt) make git sudo'
rm -rf var/cache/apt/archives var/lib/apt/lists
run python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' >"$2/python"
SCRIPT
in_namespaces() { unshare --mount --pid --fork --kill-child sh "$@"; }
in_namespaces "$target/install" "$here/build/$suite" "$target" "$here" >"$target/log" 2>&1 || {
	tail -n 20 "$target/log" >&2
	exit 1
}

# Wheels are had from here, where pip is set up. Not libvirt-python: it would be built against that
# Debian's libvirt, which has a python3-libvirt of its own.
python=$(cat "$target/python")
say "Python packages of requirements.lock for Python $python"
awk '/^[a-z0-9]/ { skip = /^libvirt-python/ } !skip' "$here/requirements.lock" >"$target/lock"
PYTHONWARNINGS=ignore "$here/.venv/bin/pip" download --quiet --disable-pip-version-check --no-input \
	--require-hashes --only-binary :all: --no-deps --python-version "$python" \
	--implementation cp --dest "$target/wheels" -r "$target/lock" 2>"$target/log" || {
	cat "$target/log" >&2
	exit 1
}
cat >"$target/venv" <<'SCRIPT'
set -eu
. "$3/scripts/root-mounts.sh"
mount_root "$1" "$2"
mkdir tmp/wheels
mount --bind "$2/wheels" tmp/wheels
cp "$2/lock" tmp/lock
run() { env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 chroot . "$@"; }
run python3 -m venv /opt/venv
run /opt/venv/bin/pip install --quiet --no-index --find-links /tmp/wheels --require-hashes --no-deps -r /tmp/lock
# linkmgr itself is what is at /src when something runs.
mkdir -p src
mount --bind "$3" src
run /opt/venv/bin/pip install --quiet --no-index --no-deps --no-build-isolation -e /src
SCRIPT
in_namespaces "$target/venv" "$here/build/$suite" "$target" "$here" >"$target/log" 2>&1 || {
	tail -n 20 "$target/log" >&2
	exit 1
}
rm -rf "$target/wheels" "$target/install" "$target/venv" "$target/lock" "$target/log" "$target/work"
mkdir "$target/work"
echo "$sum" >"$target/.complete"
