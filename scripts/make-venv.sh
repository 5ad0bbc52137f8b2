#!/bin/sh
# make-venv.sh VENV: a virtual environment with all that is locked, and linkmgr itself. Says in lines
# what it does now: it takes half a minute, most of it for libvirt-python, which is compiled. Against
# a libvirt that is newer than itself libvirt-python need not build: then linkmgr uses the
# distribution's python3-libvirt, which linkmgr/libvirt/client/libvirt_python.py finds from within the environment.
set -eu
venv=$1
count=$(grep -c '^[a-z0-9]' requirements.lock)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Print the names that pip collects and builds, each with its number; keep pip's own exit status, and
# what it said in $work/said.
pip() {
	rm -f "$work/failed"
	{
		"$venv/bin/pip" --disable-pip-version-check --no-input --no-color install \
			--progress-bar off "$@" 2>&1 || touch "$work/failed"
	} | tee "$work/said" | {
		n=$before
		while read -r what name rest; do
			case "$what $name" in
			Collecting\ * | Processing\ *) n=$((n + 1)) && echo "setup:   $n of $count: ${name##*/}" ;;
			Building\ wheel) echo "setup:   building ${rest#for }" ;;
			Installing\ collected) echo "setup:   installing" ;;
			esac
		done
	}
	[ ! -e "$work/failed" ]
}
required() {
	pip "$@" || {
		cat "$work/said" >&2
		exit 1
	}
}
# The distribution's libvirt-python is a C extension for the distribution's own Python.
distribution_binding() {
	"$venv/bin/python" -c 'import sys; sys.path = ["/usr/lib/python3/dist-packages"]; import libvirtmod' \
		2>/dev/null
}

echo "setup: virtual environment $venv"
python3 -m venv "$venv"
echo "setup: $count Python packages, pinned in requirements.lock"
awk -v is="$work/libvirt-python.lock" -v not="$work/requirements.lock" '
/^[a-z0-9]/ { file = /^libvirt-python==/ ? is : not }
file { print >file }' requirements.lock
before=0
required --require-hashes -r "$work/requirements.lock"
before=$((count - 1))
if ! pip --require-hashes -r "$work/libvirt-python.lock"; then
	locked=$(sed -n 's/^libvirt-python==\([^ ]*\).*/\1/p' "$work/libvirt-python.lock")
	if ! grep -q 'Building wheel for libvirt-python .*did not run successfully' "$work/said"; then
		cat "$work/said" >&2
		exit 1
	elif ! distribution_binding; then
		cat "$work/said" >&2
		echo "setup: libvirt-python $locked does not build here (see above), and this Python has no" \
			"python3-libvirt of the distribution; to do: apt install python3-libvirt, then make setup" >&2
		exit 1
	fi
	echo "setup: libvirt-python $locked does not build against this libvirt; using the" \
		"distribution's python3-libvirt"
fi
echo "setup: linkmgr itself"
required --no-deps --no-build-isolation -e .
