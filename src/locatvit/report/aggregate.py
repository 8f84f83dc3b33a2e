"""Results that differ in the seed alone, put together: means, spreads, and what tells groups apart."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from locatvit.config import LocAtConfig
from locatvit.report.paper import backbone_name
from locatvit.results import Result

# parts of a configuration that say where and how, not what, was run; the model is compared by itself
_MODEL = {"model", "locat", "name", "label"}
_PLACE = {"run", "runs", "run_dir", "runs_dir", "output", "folder", "root", "checkpoint", "checkpoint_run"}
_MANNER = {
    "resume",
    "overwrite",
    "device",
    "devices",
    "workers",
    "num_workers",
    "progress",
    "max_bad_images",
    "cache",
    "sheets",
}
_PACE = {"log_every", "evaluate_every", "evaluate_every_epochs", "checkpoint_every_updates"}
NOT_AN_EXPERIMENT = frozenset({"seed"} | _MODEL | _PLACE | _MANNER | _PACE)

Seeds = tuple[tuple[str, Any], ...]
"""Every seed of a run by its place in the configuration, e.g. ``(("backbone.seed", 1), ("seed", 0))``."""


@dataclass(frozen=True)
class Estimate:
    """A quantity over seeds: mean, sample standard deviation (None for one seed), number of seeds."""

    mean: float
    sd: float | None
    count: int


@dataclass(frozen=True)
class Group:
    """Results of one experiment, one or more per seed.

    Attributes:
        results: in the order given; never empty.
        settings: the configuration, flat, without what does not make an experiment.
    """

    results: tuple[Result, ...]
    settings: Mapping[str, Any]

    @property
    def first(self) -> Result:
        return self.results[0]

    @property
    def label(self) -> str:
        """The model's label, e.g. "ViT"; its name where it has none."""
        return str(self.first.model.get("label") or self.first.model.get("name", "unnamed"))

    @property
    def locat(self) -> str:
        return locat_label(self.first.model.get("locat"))

    @property
    def data(self) -> str:
        return str(self.first.data.get("name", "unnamed"))

    @property
    def protocol(self) -> str:
        """The protocol's name, e.g. "locat"; empty for one that has the name of its task, which says nothing."""
        return "" if self.first.protocol == self.first.task == "classification" else self.first.protocol

    @property
    def changes(self) -> str:
        """What is not as in the frozen protocol: ``"num_updates 600, batch_size 16"``; empty for nothing."""
        return ", ".join(f"{name} {_in_words(value)}" for name, value in self.first.changed.items())

    def estimate(self, metric: str) -> Estimate | None:
        """``metric`` over the seeds, None where no result has it."""
        values = list(self.by_seed(metric).values())
        return estimate(values) if values else None

    def by_seed(self, metric: str) -> dict[Seeds, float]:
        """Seeds to ``metric``; runs of the same seeds are averaged first, so that none counts twice."""
        found: dict[Seeds, list[float]] = {}
        for result in self.results:
            if metric in result.metrics:
                found.setdefault(seeds(result), []).append(result.metrics[metric])
        return {seed: fmean(values) for seed, values in found.items()}

    def per_class(self) -> dict[str, float | None]:
        """Class name to mean IoU over the results; None for a class that none of them has seen."""
        found: dict[str, list[float]] = {}
        for result in self.results:
            for name, value in result.per_class.items():
                found.setdefault(name, []).extend([] if value is None else [value])
        return {name: fmean(values) if values else None for name, values in found.items()}


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and sample standard deviation of one value per seed."""
    return Estimate(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def group_results(results: Iterable[Result]) -> list[Group]:
    """Put results that differ in the seed alone together, in order of first appearance.

    Two results of the same seeds from different backbone runs are different experiments.
    """
    found: dict[str, list[Result]] = {}
    for result in results:
        key = json.dumps([_identity(result), experiment_settings(result)], sort_keys=True, default=str)
        found.setdefault(key, []).append(result)
    groups: list[Group] = []
    for members in found.values():
        settings = experiment_settings(members[0])
        origins = _origins_that_collide(members)
        for origin in origins or [None]:
            chosen = [r for r in members if origin is None or _origin(r) == origin]
            groups.append(Group(tuple(chosen), {**settings, "backbone": origin} if origin else settings))
    return groups


def by_task(results: Iterable[Result]) -> dict[tuple[str, str], list[Group]]:
    """The groups of each (task, data set): what one figure or one list of titles compares."""
    found: dict[tuple[str, str], list[Group]] = {}
    for group in group_results(results):
        found.setdefault((group.first.task, group.data), []).append(group)
    return found


def experiment_settings(result: Result) -> dict[str, Any]:
    """What was run, flat: protocol, data, the model's arguments, configuration; no places, no seeds."""
    whole = {
        "protocol": result.protocol,
        "split": result.data.get("split"),
        "images": result.data.get("images"),
        "arguments": result.model.get("kwargs") or {},
        **result.config,
    }
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in flatten(whole).items()
        if not NOT_AN_EXPERIMENT & set(key.split(".")) and not (isinstance(value, str) and _is_path(value))
    }


def seeds(result: Result) -> Seeds:
    """What ``group_results`` averages over: all entries of the configuration that are named ``seed``."""
    flat = flatten(result.config)
    return tuple(sorted((key, value) for key, value in flat.items() if key.rpartition(".")[2] == "seed"))


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` to ``{"a.b": 1}``; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def locat_label(locat: Mapping[str, Any] | None) -> str:
    """``"none"``, ``"GAug"``, ``"PRR"`` or ``"GAug + PRR"``, and the settings that are not the authors'."""
    if locat is None:
        return "none"
    usual = asdict(LocAtConfig())
    chosen = {**usual, **locat}
    parts = [name for name, key in (("GAug", "gaug"), ("PRR", "prr")) if chosen[key]]
    unusual = [
        f"{key} {value}"
        for key, value in chosen.items()
        if key not in ("gaug", "prr", "backend") and value != usual.get(key)
    ]
    return ", ".join([" + ".join(parts) or "none", *unusual])


def titles(groups: Sequence[Group]) -> list[str]:
    """A short name per group, unlike every other: label, then LocAt, protocol, and the settings that differ."""
    chosen = [group.label for group in groups]
    for step in (_with_locat, _with_protocol, _with_settings):
        twice = {title for title in chosen if chosen.count(title) > 1}
        named = list(zip(chosen, groups, strict=True))
        chosen = [
            step(title, group, [other for name, other in named if name == title]) if title in twice else title
            for title, group in named
        ]
    return chosen


def settings_apart(group: Group, others: Sequence[Group]) -> str:
    """The settings of ``group`` that differ among ``others``: ``"epochs 8, lr 0.001"``."""
    keys = dict.fromkeys(key for other in others for key in other.settings)
    differing = [key for key in keys if any(other.settings.get(key) != group.settings.get(key) for other in others)]
    return ", ".join(f"{key.rpartition('.')[2]} {group.settings.get(key)}" for key in differing)


def twin(group: Group, groups: Sequence[Group]) -> Group | None:
    """The plain model's group that matches ``group`` in everything but LocAt.

    None for a plain model itself, and where not exactly one matches.
    """

    def fixed(candidate: Group) -> tuple[object, ...]:
        name = backbone_name(str(candidate.first.model.get("name")))
        settings = {key: value for key, value in candidate.settings.items() if key != "backbone"}
        return name, candidate.first.task, candidate.data, settings

    if group.first.model.get("locat") is None:
        return None
    plain = [g for g in groups if g.first.model.get("locat") is None and fixed(g) == fixed(group)]
    return plain[0] if len(plain) == 1 else None


def _with_locat(title: str, group: Group, others: Sequence[Group]) -> str:
    if len({other.locat for other in others}) == 1 or group.first.model.get("locat") is None:
        return title
    return f"{title} + {'LocAt' if group.locat == 'GAug + PRR' else group.locat}"


def _with_protocol(title: str, group: Group, others: Sequence[Group]) -> str:
    alone = not group.protocol or len({other.protocol for other in others}) == 1
    return title if alone else f"{title}, {group.protocol}"


def _with_settings(title: str, group: Group, others: Sequence[Group]) -> str:
    apart = settings_apart(group, others)
    return f"{title} ({apart})" if apart else title


def _identity(result: Result) -> list[Any]:
    model = result.model
    return [result.task, result.data.get("name"), model.get("name"), model.get("label"), model.get("locat")]


def _origin(result: Result) -> Any:
    return result.model.get("checkpoint_run")


def _origins_that_collide(members: Sequence[Result]) -> list[Any]:
    """The backbones' runs, if one seed has several of them."""
    of_seed: dict[Seeds, set[Any]] = {}
    for result in members:
        of_seed.setdefault(seeds(result), set()).add(_origin(result))
    if all(len(origins) == 1 for origins in of_seed.values()):
        return []
    return list(dict.fromkeys(_origin(result) for result in members))


def _in_words(value: Any) -> str:
    return "[" + ", ".join(map(_in_words, value)) + "]" if isinstance(value, list | tuple) else str(value)


def _is_path(text: str) -> bool:
    return "/" in text or "\\" in text
