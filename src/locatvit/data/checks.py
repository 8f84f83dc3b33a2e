"""Rules that settings of images share; no torch. Each names the setting, its value and the rule."""

from __future__ import annotations

from locatvit.errors import LocAtError


def as_tuples(config: object, *names: str) -> None:
    """Make tuples of those fields of a frozen dataclass that have a value: a YAML file gives lists."""
    for name in names:
        if getattr(config, name) is not None:
            object.__setattr__(config, name, tuple(getattr(config, name)))


def check_positive(name: str, value: int, unit: str) -> None:
    """Raise ``LocAtError`` for what is no whole number of 1 or more; ``unit`` says of what."""
    if not isinstance(value, int) or value < 1:
        raise LocAtError(f"{name} is {value}; it must be a whole number of {unit}, 1 or more")


def check_share(name: str, value: float) -> None:
    """Raise ``LocAtError`` for what is no probability."""
    if not 0 <= value <= 1:
        raise LocAtError(f"{name} is {value}; it must be a probability in [0, 1]")


def check_range(name: str, value: tuple[float, ...], most: float = float("inf")) -> None:
    """Raise ``LocAtError`` for what is not (least, most) with 0 < least <= most, and the latter up to ``most``."""
    if len(value) != 2 or not 0 < value[0] <= value[1] <= most:
        bound = "" if most == float("inf") else f" <= {most:g}"
        raise LocAtError(f"{name} is {value}; it must be (least, most) with 0 < least <= most{bound}")


def check_normalisation(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Raise ``LocAtError`` where one of them is not three numbers, or a standard deviation is not positive."""
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise LocAtError(f"mean is {mean} and std is {std}; each must have three numbers, and std positive ones")
