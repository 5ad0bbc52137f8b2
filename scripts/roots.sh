# Functions for scripts that make roots or use them; to be sourced, with $suite set.

# own COMMAND...: run a command that does not outlive this process.
own() { setpriv --pdeathsig KILL -- "$@"; }

# lock KIND FD DIRECTORY: hold DIRECTORY.lock until all that has FD has ended: --shared while DIRECTORY is
# used, --exclusive while it is made. For several: build/SUITE-tests first, then build/SUITE below it.
lock() {
	eval "exec $2>>\"\$3.lock\""
	flock --nonblock "$1" "$2" || {
		echo "$suite: waiting until nothing runs in $3, and nothing else makes it" >&2
		flock "$1" "$2"
	}
}

# lock_to_make FD DIRECTORY SUM: hold the lock of a directory that is to be made. Status 1 if it is there,
# made from inputs of that sum.
lock_to_make() {
	lock --shared "$1" "$2" # as what runs there has it
	! is_made "$2" "$3" || return 1
	lock --exclusive "$1" "$2"
	! is_made "$2" "$3" # another make may have made it meanwhile
}
is_made() { [ "$(cat "$1/.complete" 2>/dev/null)" = "$2" ]; }

# lock_test_root BUILD: hold both layers of the root in which the tests of $suite run, as FDs 9 and 8.
lock_test_root() {
	has_test_root "$1"
	lock --shared 9 "$1/$suite-tests"
	lock --shared 8 "$1/$suite"
	has_test_root "$1"
}
has_test_root() {
	[ -e "$1/$suite-tests/.complete" ] && [ -e "$1/$suite/.complete" ] || {
		echo "$suite: there is no root for tests in $1/$suite-tests; to do: make $suite" >&2
		exit 1
	}
}
