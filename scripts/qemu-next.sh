#!/bin/sh
# qemu-next.sh [DIRECTORY]: unpack a newer QEMU than this Debian's (that of its backports) there, by
# default build/qemu-next.
#
# Nothing is installed, and nothing outside DIRECTORY is touched: apt gets lists, caches and sources of
# its own. The mirror is the one that the machine's apt already uses for its own Debian.
# Run it as DIRECTORY/qemu, in the place of qemu-system-x86_64. Does nothing when it is there as this
# script makes it, and only says so where no newer one is to be had.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
target=${1:-$root/build/qemu-next}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
suite=$("$root/scripts/debian.sh" newer)

if [ -z "$suite" ]; then
	echo "qemu-next: there is no newer QEMU than this distribution's; no test runs on one"
	exit 0
fi
sum=$(echo "$suite" | cat - "$0" | sha256sum | cut -d ' ' -f 1)
if [ "$(cat "$target/.complete" 2>/dev/null)" = "$sum" ]; then
	exit 0
fi
rm -rf "$target"
mkdir -p "$target/apt/lists/partial" "$target/apt/cache/archives/partial" \
	"$target/apt/sources" "$target/debs"
target=$(cd "$target" && pwd)

cat >"$target/apt/apt.conf" <<CONF
Dir::State::lists "$target/apt/lists";
Dir::Cache "$target/apt/cache";
Dir::Etc::sourceparts "$target/apt/sources";
Acquire::Languages "none";
APT::Sandbox::User "root";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
CONF
own_apt() {
	apt-get -qq -c "$target/apt/apt.conf" "$@"
}

# The machine's own sources first: they tell the mirror, and have the libraries that are missing.
for file in /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
	[ -e "$file" ] && cp "$file" "$target/apt/sources/"
done
own_apt update
if ! own_apt indextargets --format '$(CODENAME)' 'Created-By: Packages' | grep -qx "$suite"; then
	mirror=$("$root/scripts/debian.sh" mirror)
	if [ -z "$mirror" ]; then
		echo "qemu-next: apt knows no mirror of this Debian, which $suite belongs to" >&2
		exit 1
	fi
	echo "deb [signed-by=$keyring] $mirror $suite main" >"$target/apt/sources/$suite.list"
	own_apt update
fi

# What an installation would bring besides these is a library that the machine has not got.
wanted="qemu-system-x86 qemu-system-common qemu-system-data seabios"
# A module that it has not got itself it would find among those of the machine's own QEMU, and abort.
modules() { [ ! -e "/usr/lib/x86_64-linux-gnu/qemu/$1.so" ] || wanted="$wanted $2"; }
modules ui-opengl qemu-system-modules-opengl
modules ui-spice-core qemu-system-modules-spice
modules ui-gtk qemu-system-gui
plan=$(own_apt -s --no-install-recommends -t "$suite" install $wanted)
packages=$(printf '%s\n' $wanted $(echo "$plan" | sed -n 's/^Inst \([^ ]*\).*/\1/p') | sort -u)
echo "qemu-next: unpacking" $packages
cd "$target/debs"
own_apt -t "$suite" download $packages
for deb in *.deb; do
	dpkg-deb --extract "$deb" ..
done
cd "$target"
rm -rf debs apt

# exec: the process id is QEMU's own. The system's ipxe ROMs serve if the tree has none.
cat >qemu <<'WRAPPER'
#!/bin/sh
here=$(cd "$(dirname "$0")" && pwd)
libraries=$here/usr/lib/x86_64-linux-gnu
export QEMU_MODULE_DIR="$libraries/qemu"
export LD_LIBRARY_PATH="$libraries:$here/lib/x86_64-linux-gnu${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec "$here/usr/bin/qemu-system-x86_64" \
	-L "$here/usr/share/qemu" -L "$here/usr/share/seabios" \
	-L "$here/usr/lib/ipxe/qemu" -L /usr/lib/ipxe/qemu "$@"
WRAPPER
chmod +x qemu
./qemu --version
echo "$sum" >.complete
