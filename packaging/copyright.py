"""Print the copyright file of an installation: linkmgr's licence, and those of what it bundles.

    copyright.py SITE-PACKAGES INSTALLED-SITE-PACKAGES

In Debian's machine-readable form (DEP-5), as far as the bundled distributions say what they are
under: each one's licence by its SPDX expression or its own words, and where the full text is.
"""

import re
import sys
from email import message_from_string
from email.message import Message
from pathlib import Path

_WORDS = {
    "MIT License": "MIT",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.0-or-later",
    "GNU General Public License v2 (GPLv2)": "GPL-2.0-only",
}
_TEXT = re.compile(r"licen[cs]e|copying|notice", re.IGNORECASE)


def main(site: str, installed: str) -> None:
    """Print it."""
    print("Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/")
    print("Upstream-Name: linkmgr")
    print()
    _paragraph(
        "*", "the authors of linkmgr", "Apache-2.0", ["/usr/share/common-licenses/Apache-2.0"]
    )
    for info in sorted(Path(site).glob("*.dist-info"), key=lambda path: path.name.lower()):
        about = message_from_string((info / "METADATA").read_text(encoding="utf-8"))
        if about["Name"] == "linkmgr":
            continue
        texts = [
            each for each in sorted(info.rglob("*")) if each.is_file() and _TEXT.search(each.name)
        ]
        if not texts:
            sys.exit(f"copyright: {about['Name']} has no licence's text")
        top = sorted({each.split("/")[0] for each in _files(info)})
        _paragraph(
            "\n ".join(f"{installed.lstrip('/')}/{name}" for name in top),
            _authors(about),
            _license(about),
            [f"{installed}/{each.relative_to(site)}" for each in texts],
            f"{about['Name']} {about['Version']}",
        )
    print("License: Apache-2.0")
    print(" The Apache License, Version 2.0, is in /usr/share/common-licenses/Apache-2.0.")


def _paragraph(files: str, owner: str, license_: str, texts: list[str], name: str = "") -> None:
    print(f"Files: {files}")
    print(f"Copyright: {owner}")
    print(f"License: {license_}")
    if name:
        print(f"Comment: {name}. Its licence in full is in")
        print("\n".join(f" {each}" for each in texts))
    print()


def _files(info: Path) -> list[str]:
    """The distribution's own list of files, RECORD; its commands are not installed."""
    lines = (info / "RECORD").read_text(encoding="utf-8").splitlines()
    return [line.split(",")[0] for line in lines if not line.startswith(("../", '"../', "bin/"))]


def _authors(about: Message) -> str:
    for key in ("Author", "Author-email", "Maintainer", "Maintainer-email"):
        if about[key]:
            return f"{about[key]}, and contributors"
    return f"the authors of {about['Name']}"


def _license(about: Message) -> str:
    if about["License-Expression"]:
        return str(about["License-Expression"])
    if about["License"] and "\n" not in about["License"]:
        return str(about["License"])
    classes = [
        each.rpartition(" :: ")[2]
        for each in about.get_all("Classifier", [])
        if each.startswith("License")
    ]
    if not classes:
        sys.exit(f"copyright: {about['Name']} names no licence")
    return " AND ".join(_WORDS.get(each, each) for each in classes)


if __name__ == "__main__":
    main(*sys.argv[1:])
