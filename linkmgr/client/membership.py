"""Groups that this user was put into after the login: the kernel does not know of them yet."""

from __future__ import annotations

import grp
import os
import pwd

from linkmgr.errors import Forbidden


def groups_since_login() -> set[str]:
    """Names of the groups that the user is a member of, and this process is not."""
    try:
        user = pwd.getpwuid(os.geteuid())
        missing = {*os.getgrouplist(user.pw_name, user.pw_gid)} - {os.getegid(), *os.getgroups()}
    except (KeyError, OSError):
        return set()
    names = set()
    for number in missing:
        try:
            names.add(grp.getgrgid(number).gr_name)
        except KeyError:
            continue
    return names


def explained(error: Forbidden) -> Forbidden:
    """Tell a new member of the group that it is the login that is too old."""
    for name in groups_since_login():
        if error.what.endswith(f"not in the group {name}"):
            error.hint = (
                f"log in again, or 'newgrp {name}' in this shell: you became a member after you "
                "had logged in"
            )
    return error
