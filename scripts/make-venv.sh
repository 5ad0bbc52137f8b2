#!/bin/sh
# make-venv.sh VENV: a virtual environment with all that is locked, and linkmgr itself. Says in lines
# what it does now: it takes half a minute, most of it for libvirt-python, which is compiled.
set -eu
venv=$1
count=$(grep -c '^[a-z0-9]' requirements.lock)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Print the names that pip collects and builds, each with its number; keep pip's own exit status.
pip() {
	rm -f "$work/failed"
	{
		"$venv/bin/pip" --disable-pip-version-check --no-input --no-color install \
			--progress-bar off "$@" 2>&1 || touch "$work/failed"
	} | tee "$work/said" | {
		n=0
		while read -r what name rest; do
			case "$what $name" in
			Collecting\ * | Processing\ *) n=$((n + 1)) && echo "setup:   $n of $count: ${name##*/}" ;;
			Building\ wheel) echo "setup:   building ${rest#for }" ;;
			Installing\ collected) echo "setup:   installing" ;;
			esac
		done
	}
	if [ -e "$work/failed" ]; then
		cat "$work/said" >&2
		exit 1
	fi
}

echo "setup: virtual environment $venv"
python3 -m venv "$venv"
echo "setup: $count Python packages, pinned in requirements.lock"
pip --require-hashes -r requirements.lock
echo "setup: linkmgr itself"
pip --no-deps --no-build-isolation -e .
