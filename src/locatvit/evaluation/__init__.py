"""What frozen features are worth: one protocol a file.

A protocol sees only ``Features``; models and loaders arrive as arguments. This module holds the list of
protocols and imports no torch: the command line reads it for its help.
"""

from __future__ import annotations

from locatvit.errors import LocAtError, near_matches
from locatvit.evaluation.config import SegmentationConfig
from locatvit.evaluation.protocol import Protocol

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="locat",
            measures="mIoU of a small head trained on the frozen patch tokens of the last block",
            config=SegmentationConfig,
            citation="Hajimiri et al., Locality-Attending Vision Transformer, ICLR 2026, Table 1",
        ),
    )
}
"""Every protocol by name. A new one is a file here and an entry in this list."""


def get_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        LocAtError: no such protocol; the message lists near matches.
    """
    if name not in PROTOCOLS:
        raise LocAtError(f"unknown protocol {name!r}; {near_matches(name, PROTOCOLS)}")
    return PROTOCOLS[name]


__all__ = ["PROTOCOLS", "Protocol", "SegmentationConfig", "get_protocol"]
