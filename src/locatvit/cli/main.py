"""``locatvit VERB ...``: finds the verb's file, and turns mistakes into one line."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence

from locatvit.errors import LocAtError, near_matches

VERBS = {
    "quickstart": "train a small ViT with LocAt and without, compare them on one page (5 minutes, no download)",
    "train": "train a classifier",
    "validate": "measure a classifier on the validation images",
    "segment": "train a segmentation head on a frozen backbone and measure it",
    "report": "put finished runs into one table or page",
}
"""The only list: a verb is a module of this package with ``run(arguments)``."""

_HELP = """usage: locatvit VERB [options]

Vision transformers that see where things are: LocAt (ICLR 2026) for any ViT.

verbs:
{verbs}

Each verb has its own help: locatvit train --help
Begin with: locatvit quickstart
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit code: 0, or 2 for a mistake that the message tells how to mend."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        return _dispatch(arguments)
    except LocAtError as error:
        print(f"locatvit: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("locatvit: stopped; the same command goes on where it was", file=sys.stderr)
        return 130


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, VERBS))
        print(_HELP.format(verbs="\n".join(f"  {verb:{width}}  {text}" for verb, text in VERBS.items())))
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        from locatvit import __version__

        print(f"locatvit {__version__}")
        return 0
    verb = arguments[0]
    if verb not in VERBS:
        raise LocAtError(f"{verb!r} is no verb; {near_matches(verb, VERBS)}")
    importlib.import_module(f"locatvit.cli.{verb}").run(arguments[1:])
    return 0
