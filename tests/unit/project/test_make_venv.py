"""`make setup` where the locked libvirt-python does not build: the distribution's serves."""

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "make-venv.sh"
NAME = "libvirt-python"
LOCKED = "11.10.0"

# A build backend beside the sources: nothing is fetched to build these packages.
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""
BACKEND = """
import zipfile

NAME, VERSION, BUILDS = {name!r}, {version!r}, {builds!r}

def build_wheel(directory, config_settings=None, metadata_directory=None):
    if not BUILDS:
        raise Exception("unknown type in the API of libvirt")
    distribution = NAME.replace("-", "_") + "-" + VERSION
    wheel = distribution + "-py3-none-any.whl"
    with zipfile.ZipFile(directory + "/" + wheel, "w") as archive:
        files = {{
            "METADATA": f"Metadata-Version: 2.1\\nName: {{NAME}}\\nVersion: {{VERSION}}\\n",
            "WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
            "RECORD": "",
        }}
        for file, text in files.items():
            archive.writestr(f"{{distribution}}.dist-info/{{file}}", text)
    return wheel

build_editable = build_wheel

def prepare_metadata_for_build_wheel(directory, config_settings=None):
    import os
    folder = f"{{NAME.replace('-', '_')}}-{{VERSION}}.dist-info"
    os.mkdir(directory + "/" + folder)
    with open(f"{{directory}}/{{folder}}/METADATA", "w") as file:
        file.write(f"Metadata-Version: 2.1\\nName: {{NAME}}\\nVersion: {{VERSION}}\\n")
    return folder
"""


def sdist(folder: Path, name: str, version: str, *, builds: bool) -> str:
    """Put a source distribution into a folder; return its line in a lock."""
    stem = f"{name.replace('-', '_')}-{version}"
    files = {
        "pyproject.toml": PYPROJECT,
        "backend.py": BACKEND.format(name=name, version=version, builds=builds),
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
    }
    path = folder / f"{stem}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for file, text in files.items():
            entry = tarfile.TarInfo(f"{stem}/{file}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return (
        f"{name}=={version} \\\n    --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"
    )


def make_venv(folder: Path, *locked: str) -> subprocess.CompletedProcess[str]:
    (folder / "requirements.lock").write_text("".join(locked))
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "backend.py").write_text(BACKEND.format(name="linkmgr", version="1", builds=True))
    return subprocess.run(
        ["sh", str(SCRIPT), "venv"], cwd=folder, text=True, capture_output=True, check=False,
        env={"PATH": "/usr/bin:/bin", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder),
             "PIP_CONFIG_FILE": "/dev/null"},
    )  # fmt: skip


def test_the_distributions_python3_libvirt_serves_where_the_locked_one_does_not_build(
    tmp_path: Path,
) -> None:
    other = sdist(tmp_path, "other", "1", builds=True)
    binding = sdist(tmp_path, NAME, LOCKED, builds=False)
    made = make_venv(tmp_path, other, binding)
    assert made.returncode == 0, made.stderr
    listed = subprocess.run(
        [str(tmp_path / "venv/bin/pip"), "list", "--disable-pip-version-check"],
        text=True, capture_output=True, check=True,
    ).stdout.split()  # fmt: skip
    assert {"linkmgr", "other"} <= set(listed)
    assert NAME not in listed
    assert (
        f"setup: {NAME} {LOCKED} does not build against this libvirt; "
        "using the distribution's python3-libvirt\n"
    ) in made.stdout


def test_a_libvirt_python_with_another_hash_is_refused_and_not_replaced(tmp_path: Path) -> None:
    other = sdist(tmp_path, "other", "1", builds=True)
    binding = sdist(tmp_path, NAME, LOCKED, builds=True)
    made = make_venv(tmp_path, other, binding[:-2] + ("0" if binding[-2] != "0" else "1") + "\n")
    assert made.returncode == 1
    assert "DO NOT MATCH THE HASHES" in made.stderr
    assert "python3-libvirt" not in made.stdout
