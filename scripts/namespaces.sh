#!/bin/sh
# namespaces.sh COMMAND...: run a command in a mount and a PID namespace of its own. Its processes and
# mounts end with this process, also when that is killed. (unshare --fork --kill-child alone goes on at
# a SIGTERM, which it blocks.) Process 1 is a shell, so the command need not reap what others leave.
set -eu
exec unshare --mount --pid sh -c 'trap : INT # a Ctrl-C is for the command
setpriv --pdeathsig KILL -- sh -c "\"\$@\"; exit \$?" sh "$@"
exit $?' sh "$@"
