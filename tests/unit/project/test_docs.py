"""What the documentation says is so."""

import re
from pathlib import Path

from linkmgr import hub_args
from linkmgr.errors import LinkmgrError
from linkmgr.model import NicState
from linkmgr.swap.steps import Step
from linkmgr.wirings.endpoints.attributes import ATTRIBUTES
from linkmgr.wirings.hub.nic_models import NEVER_SHOW_CARRIER, SHOW_CARRIER_SINCE

ROOT = Path(__file__).parents[3]


def test_the_readme_shows_the_arguments_that_hub_args_makes() -> None:
    assert " ".join(hub_args("net0", mac="52:54:00:12:34:56")) in (ROOT / "README.md").read_text()


def test_every_link_in_the_documentation_leads_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_error_is_in_the_table_of_errors() -> None:
    def tree(kind: type[LinkmgrError]) -> list[type[LinkmgrError]]:
        return [kind, *(deeper for child in kind.__subclasses__() for deeper in tree(child))]

    text = (ROOT / "docs/errors.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \| `(\w+)` \|", text, re.MULTILINE)
    assert dict(rows) == {kind.code: kind.__name__ for kind in tree(LinkmgrError)}


def test_every_state_and_step_is_explained() -> None:
    words = (ROOT / "docs/words.md").read_text()
    design = (ROOT / "docs/design.md").read_text()
    assert all(f"| `{state}` |" in words for state in NicState)
    assert all(f"`{step}`" in design for step in Step)


def test_the_table_of_attributes_is_the_one_that_the_code_goes_by() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    table = text.partition("| attribute | of |")[2].partition("\n\n")[0].splitlines()[2:]
    assert table == [
        f"| {each.name} | {each.kinds} | {each.changed_by} | `{each.code}` | {each.repair} |"
        for each in ATTRIBUTES
    ]


def test_the_table_of_models_is_the_one_that_the_code_goes_by() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    table = text.partition("| model | QEMU |")[2].partition("\n\n")[0].splitlines()[2:]
    models = [model for row in table for model in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert sorted(models) == sorted([*NEVER_SHOW_CARRIER, *SHOW_CARRIER_SINCE])


def test_every_target_of_the_makefile_is_explained() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^\.PHONY: ([\w-]+)$", text, re.MULTILINE))
    explained = set(re.findall(r"^([\w-]+):.*?## \w", text, re.MULTILINE))
    assert targets == explained
