#!/bin/sh
# machine.sh WORKDIR CGROUP LOWER[:LOWER...]: pid 1 of a machine. To be started by
#     unshare --mount --pid --fork --kill-child --net --uts --ipc
# It makes a root of its own from LOWER (read-only below) and a tmpfs, goes into it for good, and
# becomes systemd. Nothing of the host can be written from there, except WORKDIR/shared as /shared;
# nothing of the kernel that is not in a namespace can be set.
set -eu

work=$1
cgroup=$2
lower=$3
root=$work/root

mount --make-rprivate /
echo 1 >"$cgroup/cgroup.procs"
mkdir -p "$work/tmpfs" "$root" "$work/shared"
mount -t tmpfs -o mode=755,size=1g tmpfs "$work/tmpfs"
mkdir "$work/tmpfs/upper" "$work/tmpfs/work"
mount -t overlay -o "lowerdir=$lower,upperdir=$work/tmpfs/upper,workdir=$work/tmpfs/work" \
	overlay "$root"

mount -t tmpfs -o mode=755,nosuid tmpfs "$root/dev"
for node in "null 1 3" "zero 1 5" "full 1 7" "random 1 8" "urandom 1 9" "tty 5 0"; do
	set -- $node
	mknod -m 666 "$root/dev/$1" c "$2" "$3"
done
mkdir "$root/dev/net" "$root/dev/pts" "$root/dev/shm"
mknod -m 666 "$root/dev/net/tun" c 10 200
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t proc proc "$root/proc"
for part in sys/kernel sys/vm sys/fs sys/dev sysrq-trigger irq bus; do
	[ -e "$root/proc/$part" ] || continue
	mount --bind "$root/proc/$part" "$root/proc/$part"
	mount -o remount,bind,ro "$root/proc/$part"
done
mkdir -p "$root/shared" "$root/old"
mount --bind "$work/shared" "$root/shared"

# The cgroup that this process is in becomes the root of what it sees.
exec unshare --cgroup sh -eu -c '
	mount -t sysfs -o ro sysfs "$0/sys"
	mount -t cgroup2 cgroup2 "$0/sys/fs/cgroup"
	cd "$0"
	pivot_root . old
	umount -l /old
	rmdir /old
	# Whatever went wrong before: systemd never runs on the root of the host.
	[ "$(stat -f -c %T /)" = overlayfs ]
	[ ! -e /old ]
	ip link set lo up
	: >/etc/machine-id
	exec setpriv --bounding-set \
		-sys_module,-sys_boot,-sys_time,-sys_rawio,-syslog,-audit_control,-mac_admin,-wake_alarm \
		env -i container=linkmgr-test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
		/lib/systemd/systemd --system --show-status=no
' "$root"
