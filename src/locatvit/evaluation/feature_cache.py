"""Features of a frozen backbone on disk, so that they are computed once: one file an image, bounded, verified."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from locatvit.errors import LocAtError
from locatvit.evaluation.sliding import Seen
from locatvit.features import Features
from locatvit.storage import write_bytes

GIB = 2**30

_DIGEST_BYTES = 32
# a process looks again how full the folder is after it has filled this share of what was free: others write too
_SHARE_BETWEEN_LOOKS = 1 / 8
_LARGEST_BYTE = 255

_log = logging.getLogger(__name__)


class FeatureCache:
    """A folder of entries: what the backbone has seen of one image, and its mask.

    A file is a BLAKE2b digest of the entry's key and content, then the content as safetensors. An entry whose digest
    does not fit is removed, and read as missing, so that it is made anew. Files appear whole or not at all, and the
    same key holds the same content, so any number of processes may share a folder. When the folder holds
    ``max_bytes``, nothing more is kept; that is said once. Entries of other runs count, and are never removed.

    Args:
        folder: made at the first entry.
        max_bytes: of all files in the folder together; 0 keeps nothing.
        context: what features depend on besides the image: weights, layer, norm, image size, versions. Plain data.

    Raises:
        LocAtError: ``max_bytes`` below 0.
    """

    def __init__(self, folder: Path, max_bytes: float, context: Mapping[str, Any]) -> None:
        if max_bytes < 0:
            raise LocAtError(f"max_bytes is {max_bytes}; it must be 0, to keep nothing, or more")
        self.folder, self.max_bytes = Path(folder), max_bytes
        self._context = json.dumps(context, sort_keys=True, default=str)
        self._allowance = 0.0
        self._is_full = max_bytes == 0

    def key(self, item: str) -> str:
        """The key of an image.

        Args:
            item: says which image, and changes when the image or its mask does: path, size and time of change.
        """
        return hashlib.blake2b(f"{self._context}\n{item}".encode(), digest_size=16).hexdigest()

    def path(self, key: str) -> Path:
        """The entry's file."""
        return self.folder / key[:2] / f"{key}.features"

    def read(self, key: str) -> dict[str, Tensor] | None:
        """An entry in the form of ``to_entry``; None where there is none, or a damaged one, which is removed."""
        path = self.path(key)
        try:
            stored = path.read_bytes()
        except FileNotFoundError:
            return None
        digest, content = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
        if digest == _digest(key, content):
            try:
                return load(content)
            except SafetensorError:  # only a file that was made to fit its digest
                pass
        _log.warning("the features in %s are damaged; they are computed anew", path)
        path.unlink(missing_ok=True)
        return None

    def write(self, key: str, entry: Mapping[str, Tensor]) -> bool:
        """Keep an entry; False where it is not, because the cache or the disk is full."""
        if self._is_full:
            return False
        # cloned: safetensors refuses tensors that are parts of one
        content = save({name: _own(value) for name, value in entry.items()})
        size = len(content) + _DIGEST_BYTES
        if size > self._allowance and not self._make_room(size):
            return False
        try:
            write_bytes(self.path(key), _digest(key, content) + content)
        except LocAtError as error:
            self._stop(f"{error}. Features that are not kept are computed each time")
            return False
        self._allowance -= size
        return True

    def _make_room(self, size: int) -> bool:
        """Look how much is free, and take a share of it; False, for good, where not even ``size`` is."""
        free = self.max_bytes - sum(path.stat().st_size for path in self._files())
        if free < size:
            self._stop(
                f"the feature cache {self.folder} is full ({self.max_bytes / GIB:.3g} GiB); what it does not hold is "
                "computed each time. Raise --cache.max_gib or empty the folder"
            )
            return False
        self._allowance = max(size, free * _SHARE_BETWEEN_LOOKS)
        return True

    def _files(self) -> list[Path]:
        return [path for path in self.folder.glob("*/*.features") if path.is_file()]

    def _stop(self, reason: str) -> None:
        self._is_full = True
        _log.warning("%s", reason)


def to_entry(seen: Seen, mask: Tensor) -> dict[str, Tensor]:
    """What the backbone saw of one image, and its mask ``[H, W]``, as tensors; masks of 8 bits where they fit."""
    features = seen.features
    is_small = mask.numel() == 0 or (int(mask.min()) >= 0 and int(mask.max()) <= _LARGEST_BYTE)
    facts = (*features.grid_size, *seen.image_size, int(features.cls is not None))
    return {
        "patches": features.patches,
        "prefix": features.prefix,
        "windows": torch.tensor(seen.windows),
        "facts": torch.tensor(facts),
        "mask": mask.to(torch.uint8 if is_small else torch.int32),
    }


def from_entry(entry: Mapping[str, Tensor]) -> tuple[Seen, Tensor]:
    """The inverse of ``to_entry``; the mask is int64."""
    grid_height, grid_width, height, width, has_cls = entry["facts"].tolist()
    prefix = entry["prefix"]
    features = Features(prefix[:, 0] if has_cls else None, prefix, entry["patches"], (grid_height, grid_width))
    windows = tuple((top, left, high, wide) for top, left, high, wide in entry["windows"].tolist())
    return Seen(features, windows, (height, width)), entry["mask"].long()


def _own(value: Tensor) -> Tensor:
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def _digest(key: str, content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES, key=key.encode()).digest()
