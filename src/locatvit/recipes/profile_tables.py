"""A profile as a table, the backends of a model as another, and what a reader must know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from locatvit.analysis.timing import Spread
from locatvit.recipes.profile import ModelProfile, Profile
from locatvit.recipes.profile_backends import Answer, Attentions, BackendsProfile
from locatvit.recipes.profile_config import ProfileConfig
from locatvit.report.tables import NONE, Table

_PRECISIONS = {"no": "float32", "bf16": "bf16 autocast", "fp16": "fp16 autocast"}
_COUNTED = (
    "Multiply-adds: of matrix products and convolutions for one image, a bias being one term more; softmax, "
    "exponentials and norms count nothing."
)
_ALL_OF_PRR = "With all of PRR: as the paper counts. The head reads a few rows of PRR, and those alone are computed."
_NO_MEMORY = "Peak memory: this device does not tell it."
_PREFERENCE = "Backends are in order of preference: by default the first that can run is taken."
_NOTHING_ASKED = (
    "Without GAug there is no bias; and one that is no product of two factors goes to torch's own attention, as a "
    "dense mask."
)


def profile_table(profile: Profile) -> tuple[Table, list[str]]:
    """One row a quantity, plain and LocAt in columns; and the lines that belong below."""
    sides = [profile.plain] if profile.locat is None else [profile.plain, profile.locat]
    columns = ("", "plain", "LocAt", "LocAt / plain")[: 4 if profile.locat else 2]
    notes = [_COUNTED]
    if _saves_refinement(sides):
        notes.append(_ALL_OF_PRR)
    if any(speed.peak_bytes is None for speed in profile.plain.speeds.values()):
        notes.append(_NO_MEMORY)
    if profile.why_no_locat is not None:
        notes.append(f"No LocAt: {profile.why_no_locat}.")
    return Table(columns, tuple(_rows(sides, profile.speed_ratio)), caption=_caption(profile)), notes


def _caption(profile: Profile) -> str:
    return f"{_asked(profile.config)}, {profile.environment['device']}."


def _asked(config: ProfileConfig) -> str:
    size = config.image_size
    pixels = f"{size} x {size}" if isinstance(size, int) else " x ".join(map(str, size or ()))
    images = f"{config.batch_size} image{'s' * (config.batch_size != 1)} at a time"
    return f"{config.model.name}, {pixels} pixels, {images}, {_PRECISIONS[config.precision]}"


def _saves_refinement(sides: Sequence[ModelProfile]) -> bool:
    return any(side.cost.paper_multiply_adds != side.cost.multiply_adds for side in sides)


def _rows(sides: Sequence[ModelProfile], ratios: dict[str, Spread]) -> Iterator[tuple[str, ...]]:
    parameters = [side.cost.parameters for side in sides]
    more = [f"+{parameters[1] - parameters[0]:,}"] if len(sides) == 2 else []
    yield ("parameters", *(f"{number:,}" for number in parameters), *more)
    yield _row("multiply-adds, G", [side.cost.multiply_adds / 1e9 for side in sides], ",.3f")
    if _saves_refinement(sides):
        yield _row("  with all of PRR", [side.cost.paper_multiply_adds / 1e9 for side in sides], ",.3f")
    for name in sides[0].speeds:
        speeds = [side.speeds[name] for side in sides]
        rates = [speed.images_per_second for speed in speeds]
        yield _row(f"{name}, images/s", [rate.median for rate in rates], "#.4g")
        ranges = [f"{rate.low:#.4g} - {rate.high:#.4g}" for rate in rates]
        if name in ratios:
            ranges.append(f"{ratios[name].low:.3f} - {ratios[name].high:.3f}")
        yield (f"  middle half of {rates[0].count} turns", *ranges)
        mib = [None if speed.peak_bytes is None else speed.peak_bytes / 2**20 for speed in speeds]
        yield _row("  peak memory, MiB", mib, ",.0f")


def _row(name: str, values: Sequence[float | None], form: str) -> tuple[str, ...]:
    """The values, and the second over the first."""
    shown = [NONE if value is None else format(value, form) for value in values]
    if len(values) == 2:
        plain, locat = values
        shown.append(f"{locat / plain:.3f}" if plain and locat else NONE)
    return (name, *shown)


def backends_table(found: BackendsProfile) -> tuple[Table, list[str]]:
    """What every backend says to every distinct request, those with the same answers together."""
    by_answers: dict[tuple[Answer, ...], list[Attentions]] = {}
    for attentions in found.attentions:
        by_answers.setdefault(attentions.answers, []).append(attentions)
    rows: list[tuple[str, ...]] = []
    for answers, group in by_answers.items():
        rows.extend((_request(each), "") for each in group)
        rows.extend((f"  {answer.backend}", _answer(answer)) for answer in answers)
    passes = "forward + backward" if found.config.backward else "forward"
    caption = f"{_asked(found.config)}, {passes}, on {found.device}."
    notes = [_PREFERENCE]
    if not rows:
        rows, notes = [("attentions that ask for a backend", "none")], [_NOTHING_ASKED]
    if any(not any(answer.chosen for answer in answers) for answers in by_answers):
        named = found.config.model.locat.backend if found.config.model.locat else ""
        notes = [f"model.locat.backend is {named!r}, which cannot run: the model stops with that reason."]
    return Table(("", "can it run?"), tuple(rows), text_columns=2, caption=caption), notes


def _answer(answer: Answer) -> str:
    if answer.chosen:
        return "yes: this one is taken"
    return "yes" if answer.why_not is None else f"no: {answer.why_not}"


def _request(attentions: Attentions) -> str:
    request = attentions.request
    height, width = request.grid_size
    prefix = f" + {request.num_prefix_tokens}" if request.num_prefix_tokens else ""
    words = [
        f"{attentions.count} attention{'s' * (attentions.count != 1)}",
        f"{height} x {width}{prefix} tokens",
        f"heads of {request.head_dim}",
    ]
    if request.attn_bias_shape is not None:
        words.append(f"attn_bias {' x '.join(map(str, request.attn_bias_shape))}")
    if request.dropout_p > 0:
        words.append(f"dropout {request.dropout_p}")
    return ", ".join(words)
