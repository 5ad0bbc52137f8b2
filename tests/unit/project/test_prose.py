"""What docstrings and documents name is there: modules, files, parameters, errors."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
SOURCES = [*ROOT.glob("linkmgr/**/*.py")]
DOCUMENTS = [*ROOT.glob("docs/*.md"), *ROOT.glob("*.md")]
#: Kinds of file that a word behind ``linkmgr.`` may be, where no module of that name is.
ENDINGS = {"service", "socket", "sock", "toml"}


def missing_names(text: str) -> Iterator[str]:
    """Yield what a text names in backticks as ``linkmgr.A.B`` and the package has not got."""
    for name in re.findall(r"(?<!`)`linkmgr\.(\w+(?:\.\w+)*)`(?!`)", text):
        file, rest = ROOT / "linkmgr", name.split(".")
        while rest and (file / rest[0]).is_dir():
            file /= rest.pop(0)
        module = file / f"{rest[0]}.py" if rest else file
        if rest and module.is_file():
            file, rest = module, rest[1:]
        source = (file / "__init__.py" if file.is_dir() else file).read_text()
        if rest and rest[0] not in ENDINGS and not set(rest) <= set(re.findall(r"\w+", source)):
            yield f"linkmgr.{name}"


def missing_files(text: str) -> Iterator[str]:
    """Yield what a text names as a Python file in a folder, and that is in none of ours."""
    for name in re.findall(r"`((?:[\w-]+/)+[\w-]+\.py)", text):
        if not any((ROOT / base / name).is_file() for base in ("", "linkmgr")):
            yield name


def missing_parameters(tree: ast.Module) -> Iterator[str]:
    """Yield the names of described parameters that are no parameter, field or attribute."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        described = re.findall(r":param (\w+):", ast.get_docstring(node) or "")
        inside = list(ast.walk(node))
        known = {each.arg for each in inside if isinstance(each, ast.arg)}
        if isinstance(node, ast.ClassDef):
            known |= {each.attr for each in inside if isinstance(each, ast.Attribute)}
            known |= {each.id for each in inside if isinstance(each, ast.Name)}
            if node.bases and "__init__" not in {getattr(each, "name", "") for each in node.body}:
                continue  # what it inherits is not looked up
        yield from (f"{node.name}: {each}" for each in described if each not in known)


def missing_modules(folder: Path, text: str) -> Iterator[str]:
    """Yield what a folder's docstring names, in lower case, and that is no module of linkmgr."""
    for name in re.findall(r"(?<!`)`([a-z_.]+)`(?!`)", text):
        places = [base / name.replace(".", "/") for base in (folder, ROOT / "linkmgr", ROOT)]
        if not any(each.is_dir() or each.with_suffix(".py").is_file() for each in places):
            yield name


def missing_errors(text: str, known: set[str]) -> Iterator[str]:
    """Yield the errors that a text says are raised, and that no class is called."""
    for names in re.findall(r":raise ((?:\w+, )*\w+):", text):
        yield from (name for name in names.split(", ") if name not in known)


def test_each_module_and_file_that_is_named_exists() -> None:
    texts = {path: path.read_text() for path in [*SOURCES, *DOCUMENTS]}
    missing = {
        str(path.relative_to(ROOT)): found
        for path, text in texts.items()
        if (found := [*missing_names(text), *missing_files(text)])
    }
    assert missing == {}


def test_each_module_that_a_folder_describes_exists() -> None:
    folders = {path.parent: path.read_text() for path in SOURCES if path.name == "__init__.py"}
    missing = {
        str(folder.relative_to(ROOT)): found
        for folder, text in folders.items()
        if (found := [*missing_modules(folder, ast.get_docstring(ast.parse(text)) or "")])
    }
    assert missing == {}
    assert [*missing_modules(ROOT / "linkmgr/host", "`host`, `netlink.gone`")] == ["netlink.gone"]


def test_each_error_that_is_described_exists() -> None:
    texts = {path: path.read_text() for path in SOURCES}
    classes = re.findall(r"^ *class (\w+)", "\n".join(texts.values()), re.MULTILINE)
    known = {*classes, *dir(builtins)}
    missing = {
        str(path.relative_to(ROOT)): found
        for path, text in texts.items()
        if (found := [*missing_errors(text, known)])
    }
    assert missing == {}
    assert [*missing_errors(":raise KeyError, Gone: never.", known)] == ["Gone"]


def test_each_parameter_that_is_described_exists() -> None:
    missing = {
        str(path.relative_to(ROOT)): found
        for path in SOURCES
        if (found := list(missing_parameters(ast.parse(path.read_text()))))
    }
    assert missing == {}


def test_what_is_gone_is_found() -> None:
    text = "`linkmgr.gone`, `linkmgr.host.gone`, `linkmgr.model.Gone`, `linkmgr.model.Nic`"
    assert list(missing_names(text)) == ["linkmgr.gone", "linkmgr.host.gone", "linkmgr.model.Gone"]
    assert list(missing_files("`gone/host.py`, `host/host.py`")) == ["gone/host.py"]
    tree = ast.parse('def run(call):\n    """Run it.\n\n    :param look: what is run.\n    """')
    assert list(missing_parameters(tree)) == ["run: look"]
