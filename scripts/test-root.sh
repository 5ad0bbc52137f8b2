#!/bin/sh
# test-root.sh SUITE: what the tests need, on top of the minimal root build/SUITE: the packages of
# packages.txt and a virtual environment in /opt/venv, in build/SUITE-tests. Made anew when one of its
# inputs has changed: what decides what is in it. scripts/in-root.sh runs something there.
set -eu

suite=$1
here=$(cd "$(dirname "$0")/.." && pwd)
target=$here/build/$suite-tests
inputs="packages.txt requirements.lock pyproject.toml scripts/test-root.sh scripts/root-mounts.sh \
	scripts/missing-packages.sh packaging/root.sh"
log=$target.log
. "$here/scripts/roots.sh"
say() { echo "$suite: $*"; }
failed() {
	say "$1 failed: $("$here/scripts/reason.sh" "$log"); all that was said is in $log" >&2
	exit 1
}

sum=$(cd "$here" && cat $inputs | sha256sum | cut -d ' ' -f 1)
mkdir -p "$here/build"
lock_to_make 9 "$target" "$sum" || exit 0
own "$here/packaging/root.sh" "$suite"
lock --shared 8 "$here/build/$suite"
rm -f "$target/.complete" # first: what is half removed is not whole
rm -rf "$target"
mkdir -p "$target/upper" "$target/work" "$target/root" "$target/wheels"

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
run apt-get -qq update --error-on=any
packages=$(run sh /tmp/missing-packages.sh /tmp/packages.txt)
run apt-get -qq install --no-install-recommends $packages make git sudo
rm -rf var/cache/apt/archives var/lib/apt/lists
run python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' >"$2/python"
SCRIPT
in_namespaces() { own "$here/scripts/namespaces.sh" sh "$@"; }
in_namespaces "$target/install" "$here/build/$suite" "$target" "$here" >"$log" 2>&1 ||
	failed "installing the packages"

# Wheels are had from here, where pip is set up. Not libvirt-python: it would be built against that
# Debian's libvirt, which has a python3-libvirt of its own.
python=$(cat "$target/python")
say "Python packages of requirements.lock for Python $python"
awk '/^[a-z0-9]/ { skip = /^libvirt-python/ } !skip' "$here/requirements.lock" >"$target/lock"
own env PYTHONWARNINGS=ignore "$here/.venv/bin/pip" download --quiet --disable-pip-version-check --no-input \
	--require-hashes --only-binary :all: --no-deps --python-version "$python" \
	--implementation cp --dest "$target/wheels" -r "$target/lock" >"$log" 2>&1 ||
	failed "downloading the Python packages"
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
in_namespaces "$target/venv" "$here/build/$suite" "$target" "$here" >"$log" 2>&1 ||
	failed "installing the Python packages"
rm -rf "$target/wheels" "$target/install" "$target/venv" "$target/lock" "$log" "$target/work"
mkdir "$target/work"
echo "$sum" >"$target/.complete"
