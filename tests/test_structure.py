"""The table of import directions, kept true: who may import whom, and where each outside library lives."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "locatvit"
ROWS = {
    **dict.fromkeys(("errors", "storage", "grid", "config", "features", "results", "transformers_hosts"), 0),
    "ops": 1,
    "layers": 2,
    "data": 3,
    "backbones": 4,
    **dict.fromkeys(("training", "evaluation", "analysis"), 5),
    **dict.fromkeys(("recipes", "report"), 6),
    **dict.fromkeys(("cli", "app"), 7),
    "__main__": 8,  # python -m locatvit
}
"""Each part of the package and its row."""
MAY_IMPORT = {
    0: {0},
    1: {0},
    2: {0, 1},
    3: {0},
    4: {0, 1, 2},
    5: {0, 1, 2},
    6: {0, 1, 2, 3, 4, 5},
    7: {0, 1, 2, 3, 4, 5, 6},
    8: {7},
}
EXCEPTIONS = {
    ("recipes", "report"): "the quick start ends in a page",
}
"""Imports between two parts that the rows alone would forbid, and why."""
ADDRESSES: dict[str, tuple[str, ...]] = {
    "triton": ("ops/attention/triton_kernels.py", "ops/prediction_kernels.py"),
    "timm": (
        "backbones/__init__.py",
        "backbones/timm_*.py",
        "backbones/jumbo.py",
        "backbones/registry.py",
        "data/*.py",
        "training/*.py",
    ),
    "accelerate": ("training/*.py", "recipes/*.py"),
    "torchmetrics": ("evaluation/metrics.py",),
    "matplotlib": ("report/figures.py", "report/lettering.py"),
    "jinja2": ("report/html.py",),
    "PIL": ("data/*.py", "report/*.py"),
    "pyarrow": ("data/*.py",),
    "torchvision": ("data/*.py",),
    "scipy": ("data/*.py", "evaluation/matching.py"),
    "faiss": ("evaluation/retrieval.py",),
    "transformers": ("backbones/transformers*.py",),
    "huggingface_hub": ("backbones/checkpoint.py", "backbones/hub.py"),
    "safetensors": ("backbones/checkpoint.py", "evaluation/feature_cache.py", "recipes/*.py"),
    "jsonargparse": ("cli/*.py",),
    "yaml": ("recipes/*.py",),
    "wrapt": ("__init__.py",),
    "onnxruntime": ("recipes/export.py",),
}
"""Where an outside library may be imported. Those that are not listed may be imported anywhere."""
TIMM_IN_TRAINING = {"timm.optim", "timm.data", "timm.utils"}
"""Optimiser groups, Mixup and the moving average; imported only where they are used."""
WITHOUT_TORCH = (
    "locatvit", "locatvit.errors", "locatvit.storage", "locatvit.results", "locatvit.config", "locatvit.data",
    "locatvit.data.config", "locatvit.training.config", "locatvit.evaluation", "locatvit.evaluation.config",
    "locatvit.recipes.config", "locatvit.report.tables", "locatvit.report.runs", "locatvit.cli.main",
    "locatvit.cli.options", "locatvit.cli.train", "locatvit.cli.validate", "locatvit.cli.segment",
    "locatvit.cli.report", "locatvit.cli.quickstart", "locatvit.cli.show", "locatvit.cli.profile",
    "locatvit.recipes.profile_config", "locatvit.cli.export", "locatvit.recipes.export_config",
    "locatvit.cli.predict", "locatvit.recipes.predict_config", "locatvit.cli.hummingbird",
    "locatvit.recipes.hummingbird_config", "locatvit.data.retrieval_config", "locatvit.evaluation.hummingbird_config",
    "locatvit.data.decoding", "locatvit.data.prepare.run", "locatvit.data.segmentation_sets", "locatvit.cli.data",
    "locatvit.recipes.data_config",
)  # fmt: skip
FILES = sorted(SOURCE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def part_of(path: Path) -> str:
    """The package or module at the top that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every module that a file imports, also within functions, and whether that is done at its head."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    within = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in within
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)} imports relative to itself; write locatvit.... in full"
            assert all(alias.name != "*" for alias in node.names), f"{name_of(path)} imports *"
            yield str(node.module), id(node) not in within
            for alias in node.names:
                yield f"{node.module}.{alias.name}", id(node) not in within


def ours(path: Path) -> set[str]:
    """The parts of our package that a file imports."""
    found = {module.split(".")[1] for module, _ in imports(path) if module.startswith("locatvit.")}
    return found & ROWS.keys()


def test_every_part_has_a_row() -> None:
    assert {part_of(path) for path in FILES} - {"__init__"} <= ROWS.keys()
    assert len(FILES) > 50, "the sources were not found"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_down_the_table(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        return  # it names what the parts offer, and loads each when it is first used
    for other in ours(path) - {part}:
        allowed = {0} if part == "report" else MAY_IMPORT[ROWS[part]]
        assert ROWS[other] in allowed or (part, other) in EXCEPTIONS, (
            f"{name_of(path)} (row {ROWS[part]}) imports locatvit.{other} (row {ROWS[other]})"
        )


@pytest.mark.parametrize("library", ADDRESSES)
def test_each_library_at_its_address(library: str) -> None:
    for path in FILES:
        if any(module.partition(".")[0] == library for module, _ in imports(path)):
            places = ADDRESSES[library]
            assert any(fnmatch(name_of(path), place) for place in places), (
                f"{name_of(path)} imports {library}; its place is {', '.join(places)}"
            )


def test_training_takes_three_parts_of_timm_and_only_when_used() -> None:
    for path in FILES:
        if part_of(path) != "training":
            continue
        for module, at_once in imports(path):
            if module.partition(".")[0] == "timm":
                assert not at_once, f"{name_of(path)} imports {module} at its head; a head may not load timm"
                assert ".".join(module.split(".")[:2]) in TIMM_IN_TRAINING, f"{name_of(path)}: {module}"


def test_nothing_reads_the_environment() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        for word in ("os.environ", "getenv"):
            assert word not in text, f"{name_of(path)} has {word}; settings come from dataclasses alone"


def test_what_help_and_reports_need_loads_no_torch() -> None:
    code = (
        "import sys, importlib\n"
        f"for name in {WITHOUT_TORCH!r}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'timm', 'torchvision', 'accelerate', 'matplotlib'} & set(sys.modules)\n"
        "    assert not heavy, f'{name} loads {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_public_names_are_there() -> None:
    import locatvit

    for name in locatvit.__all__:
        assert getattr(locatvit, name) is not None
    assert set(locatvit.__all__) <= set(dir(locatvit))
    with pytest.raises(AttributeError, match="module 'locatvit' has no attribute 'add_locatt'"):
        locatvit.add_locatt  # noqa: B018


def test_the_guides_example_is_the_file_itself() -> None:
    guide = (SOURCE.parents[1] / "docs" / "contributing.md").read_text(encoding="utf-8")
    shown = "\n".join("+" + line for line in (SOURCE / "backbones" / "timm_rope.py").read_text("utf-8").splitlines())
    assert shown in guide, "docs/contributing.md shows another timm_rope.py; put the present one there"
