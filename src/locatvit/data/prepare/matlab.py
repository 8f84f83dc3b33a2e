"""Label maps in MATLAB's files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from locatvit.errors import LocAtError


def read_matlab(
    path: Path, variable: str, find: Callable[[Any], Any] = lambda value: value
) -> Integer[np.ndarray, "H W"]:
    """A label map in a ``.mat`` file (before version 7.3; no objects, so nothing is run).

    Args:
        path: the file.
        variable: the variable that holds the map, or holds what holds it.
        find: the variable's value to the map.

    Raises:
        LocAtError: scipy is missing, the file cannot be read, or holds no such map.
    """
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError as error:
        raise LocAtError(f"{path} is a MATLAB file, which scipy reads; run: pip install 'locatvit[data]'") from error
    try:
        content = loadmat(str(path), variable_names=[variable])
    except (MatReadError, OSError, ValueError, TypeError, NotImplementedError, EOFError, IndexError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LocAtError(f"{path} cannot be read as a MATLAB file: {reason}; download it again") from error
    try:
        labels = np.asarray(find(content[variable]))
        whole = labels.astype(np.int64)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise LocAtError(f"{path} has no label map in {variable}; it is not the official file, download it") from error
    if labels.ndim != 2 or not np.array_equal(whole, labels):
        raise LocAtError(f"{variable} of {path} has the shape {labels.shape}; it must be whole numbers, height x width")
    return whole
