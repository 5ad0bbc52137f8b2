#!/bin/sh
# install.sh: put linkmgr under $DESTDIR$PREFIX: a virtual environment in PREFIX/lib/linkmgr on the
# system's python3, the command, systemd units, completions and the man page; and libvirt's hook and
# AppArmor's rules into $DESTDIR/etc. Enables and starts nothing. Needs no root for a DESTDIR that
# can be written. What it puts outside PREFIX/lib/linkmgr is listed in PREFIX/lib/linkmgr/files, for
# uninstall.sh. What it needs of PyPI is kept in $WHEELS, if that is given; with all of it there,
# no network is needed.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
destdir=${DESTDIR:-}
prefix=${PREFIX:-/usr/local}
python=${SYSTEM_PYTHON:-/usr/bin/python3}
libdir=$prefix/lib/linkmgr
into=$destdir$libdir
case $prefix in
/*) ;;
*) echo "install: PREFIX must be an absolute path, not $prefix" >&2 && exit 1 ;;
esac
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
	echo "install: $python is older than Python 3.11" >&2
	exit 1
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# pip lives outside: the installed environment has nothing that installs.
"$python" -m venv "$work/tools"
pip() {
	"$work/tools/bin/python" -m pip --quiet --disable-pip-version-check --no-input "$@"
}
wheels=${WHEELS:-$work/wheels}
if [ ! -e "$wheels/.complete" ] || [ -n "$(find "$here" -name '*.lock' -newer "$wheels/.complete")" ]
then
	rm -rf "$wheels"
	mkdir -p "$wheels"
	for lock in requirements build-requirements; do
		pip download --require-hashes --only-binary :all: -d "$wheels" -r "$here/$lock.lock"
	done
	touch "$wheels/.complete"
fi
export PIP_NO_INDEX=1 PIP_FIND_LINKS="$wheels"
# Only now: without a network what is installed stays.
rm -rf "$into"
mkdir -p "$into" "$destdir$prefix/bin"
"$python" -m venv --without-pip "$into"
site=$("$into/bin/python3" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
pip install --no-compile --no-deps --require-hashes --target "$site" -r "$here/requirements.lock"
rm -rf "$site/bin"
# From a copy: a build leaves traces, and the sources may be read-only.
mkdir "$work/source"
cp -R "$root/linkmgr" "$root/pyproject.toml" "$root/README.md" "$root/LICENSE" "$work/source/"
pip install --no-compile --no-deps --target "$site" "$work/source"
rm -rf "$into"/bin/activate* "$into"/bin/Activate* "$site/bin" "$into/include"
rm -f "$site"/linkmgr-*.dist-info/direct_url.json # it names a directory that is gone
# Compiled here, for these exact paths, so that nothing is written at run time.
find "$into" -name __pycache__ -prune -exec rm -rf {} +
unset PYTHONPYCACHEPREFIX # would put them elsewhere
"$python" -m compileall -q -j 0 --invalidation-mode unchecked-hash -s "$destdir" "$site"
sed -i "s|^command = .*|command = $python -m venv --without-pip $libdir|" "$into/pyvenv.cfg"
version=$("$into/bin/python3" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
sed -e "s|@LIBDIR@|$libdir|" -e "s|@PYTHON@|$version|" "$here/linkmgr.launcher" >"$into/bin/linkmgr"
chmod 755 "$into/bin/linkmgr"
ln -sfn ../lib/linkmgr/bin/linkmgr "$destdir$prefix/bin/linkmgr"

echo "$prefix/bin/linkmgr" >"$into/files"
# put MODE FILE PATH: install a file, and list it.
put() {
	install -D -m "$1" "$2" "$destdir$3"
	echo "$3" >>"$into/files"
}
exec=
case $prefix/ in
/usr/*) ;;
*) exec="$prefix " ;;
esac
unit() {
	sed -e "s|/usr/bin/linkmgr|$prefix/bin/linkmgr|" -e "s|^ExecPaths=|&$exec|" "$here/$1" >"$work/$1"
	put 644 "$work/$1" "$prefix/lib/systemd/system/$1"
}
unit linkmgr.service
unit linkmgr.socket
unit linkmgr-admin.socket
unit linkmgr-fd.socket
unit linkmgr-qmp.socket
unit linkmgr-metrics.service
unit linkmgr-metrics.timer
put 644 "$here/linkmgr.sysusers" "$prefix/lib/sysusers.d/linkmgr.conf"
put 644 "$here/linkmgr.tmpfiles" "$prefix/lib/tmpfiles.d/linkmgr.conf"

# The host's other network managers leave the cables alone.
put 644 "$here/managers/udev.link" "$prefix/lib/systemd/network/05-linkmgr.link"
put 644 "$here/managers/networkd.network" "$prefix/lib/systemd/network/05-linkmgr.network"
put 644 "$here/managers/networkd-renamed.network" \
	"$prefix/lib/systemd/network/05-linkmgr-renamed.network"
put 644 "$here/managers/udev.rules" "$prefix/lib/udev/rules.d/70-linkmgr.rules"
# NetworkManager does not look into /usr/local.
nm=/etc
if [ "$prefix" = /usr ]; then
	nm=/usr/lib
fi
put 644 "$here/managers/NetworkManager.conf" "$nm/NetworkManager/conf.d/90-linkmgr.conf"
put 644 "$here/managers/dhcpcd.conf" "$prefix/share/doc/linkmgr/dhcpcd.conf"

# libvirt looks for hooks in /etc alone, AppArmor for rules too, whatever the prefix.
sed "s|/usr/bin/linkmgr|$prefix/bin/linkmgr|" "$root/hooks/qemu" >"$work/hook"
install -D -m 755 "$work/hook" "$into/hooks/qemu" # with which doctor compares
put 755 "$work/hook" /etc/libvirt/hooks/qemu.d/50-linkmgr
put 644 "$here/apparmor" /etc/apparmor.d/abstractions/libvirt-qemu.d/linkmgr

share=$prefix/share
gzip -9n <"$here/linkmgr.1" >"$work/linkmgr.1.gz"
put 644 "$work/linkmgr.1.gz" "$share/man/man1/linkmgr.1.gz"
completion() {
	"$into/bin/python3" -IB "$into/bin/linkmgr" completion "$1" >"$work/completion"
	put 644 "$work/completion" "$share/$2"
}
completion bash bash-completion/completions/linkmgr
completion zsh zsh/vendor-completions/_linkmgr
completion fish fish/vendor_completions.d/linkmgr.fish
"$python" -X utf8 "$here/copyright.py" "$site" "${site#"$destdir"}" >"$work/copyright"
put 644 "$work/copyright" "$share/doc/linkmgr/copyright"
put 644 "$root/README.md" "$share/doc/linkmgr/README.md"
