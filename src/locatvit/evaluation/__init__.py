"""What frozen features are worth: one protocol a file.

A protocol sees only ``Features``; models and loaders arrive as arguments. This module holds the list of
protocols and imports no torch: the command line reads it for its help.
"""

from __future__ import annotations

from locatvit.errors import LocAtError, near_matches
from locatvit.evaluation.config import SegmentationConfig
from locatvit.evaluation.hummingbird_config import HummingbirdConfig
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
        Protocol(
            name="linear",
            measures="mIoU of batch norm and a linear layer on the frozen, normed patch tokens of the last block",
            config=SegmentationConfig,
            citation="Oquab et al., DINOv2, TMLR 2024, Section 7.4",
        ),
        Protocol(
            name="hummingbird",
            measures="mIoU of labels voted by the nearest patches of the training images; nothing is trained",
            config=HummingbirdConfig,
            citation="Balazevic et al., Towards In-context Scene Understanding, NeurIPS 2023",
        ),
        Protocol(
            name="hummingbird_locat",
            measures="the same as the LocAt paper counts it: squashed images, predicted classes matched to true ones",
            config=HummingbirdConfig,
            citation="Hajimiri et al., Locality-Attending Vision Transformer, ICLR 2026, Table 4",
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


__all__ = ["PROTOCOLS", "HummingbirdConfig", "Protocol", "SegmentationConfig", "get_protocol"]
