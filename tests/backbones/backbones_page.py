"""Writes the tables of docs/backbones.md from the contract tests' lists: run this file."""

from __future__ import annotations

import re
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"
sys.path.insert(0, str(Path(__file__).parents[1]))  # pytest's settings do it, too


def tables() -> dict[str, str]:
    """Name of a table to its rows, in Markdown."""
    return {"works": _works(), "transformers": _transformers(), "refused": _refused()}


def filled(page: str) -> str:
    """The page with these tables between its marks."""
    for name, table in tables().items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        page, count = re.subn(f"{begin}.*?{end}", lambda _, t=table, b=begin, e=end: f"{b}\n{t}\n{e}", page, flags=re.S)
        assert count == 1, f"{PAGE.name} has no {begin} ... {end}"
    return page


def _works() -> str:
    from small_models import SUBJECTS, family_of

    names: dict[str, list[str]] = {}
    for subject in SUBJECTS.values():
        found = names.setdefault(family_of(subject.on_meta), [])
        if subject.name not in found:
            found.append(subject.name)
    rows = [f"| {family} | {' '.join(f'`{name}`' for name in found)} |" for family, found in names.items()]
    return "\n".join(["| family | models under the contract tests |", "| --- | --- |", *rows])


def _transformers() -> str:
    from locatvit.transformers_hosts import only_tower
    from small_transformers import HOSTS

    heads = {True: "before the head or the pooler", False: "no place: `LocAtConfig(prr=False)`"}
    rows = []
    for host in HOSTS:
        tower, found = only_tower(host.plain())
        size = "asked for by `accept_any_size`" if found.resamples else "by itself"
        rows.append(
            f"| `{host.name}` | `{type(tower).__name__}` | {host.num_prefix_tokens} | {heads[host.prr]} | {size} |"
        )
    head = "| model | its backbone | prefix tokens in the test | PRR | other image sizes |"
    return "\n".join([head, "| --- | --- | ---: | --- | --- |", *rows])


def _refused() -> str:
    import timm
    import torch
    from test_refused_models import NAMES

    from locatvit.backbones.refusals import REASONS

    examples: dict[str, str] = {}
    for name in NAMES:
        with torch.device("meta"):
            examples[type(timm.create_model(name)).__name__] = name
    rows = [
        f"| `{kind}` | {f'`{examples[kind]}`' if kind in examples else ''} | {reason} |"
        for kind, reason in REASONS.items()
    ]
    return "\n".join(["| timm's class | for example | why not |", "| --- | --- | --- |", *rows])


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
