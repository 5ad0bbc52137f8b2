# Functions for scripts that enter a root; to be sourced in a mount namespace of one's own.

# mount_root LOWER WORK: mount LOWER, which is only read, below WORK/upper as WORK/root, with /proc, /sys
# and /dev of this kernel and an empty /run and /tmp. Change into it.
mount_root() {
	mount --make-rprivate /
	mkdir -p "$2/upper" "$2/work" "$2/root"
	mount -t overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" overlay "$2/root"
	cd "$2/root"
	mount -t proc proc proc
	mount --rbind /sys sys
	mount --rbind /dev dev
	mount -t tmpfs -o mode=755 tmpfs run
	mount -t tmpfs -o mode=1777 tmpfs tmp
	mkdir run/lock
}

# use_apt: let apt reach its mirror from the root in the working directory as it does on this machine.
use_apt() {
	[ ! -e /etc/resolv.conf ] || cp -L /etc/resolv.conf etc/resolv.conf
	apt-config dump Acquire | grep -v '"";$' >etc/apt/apt.conf.d/90machine
	# A mirror may keep the index of a suite that is not released past its date.
	echo 'Acquire::Check-Valid-Until "false";' >>etc/apt/apt.conf.d/90machine
	echo force-unsafe-io >etc/dpkg/dpkg.cfg.d/machine
}

# use_pip: let pip reach its index from there as it does on this machine. Its configuration and each
# directory that this names (of an index DIRECTORY/simple all of DIRECTORY) are bound, read-only.
use_pip() {
	{
		printf '%s\n' /etc/pip.conf /etc/xdg/pip /root/.config/pip
		python3 -m pip config list | grep -oE "/[^ ']+"
	} | sed -E 's|^/+|/|; s|/simple$||' | sort -u | while read -r path; do
		[ -e "$path" ] || continue
		if [ -d "$path" ]; then
			mkdir -p ".$path"
		else
			mkdir -p ".$(dirname "$path")"
			[ -e ".$path" ] || : >".$path"
		fi
		mount --bind "$path" ".$path"
		mount -o remount,bind,ro ".$path"
	done
}
