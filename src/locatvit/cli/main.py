"""``locatvit VERB ...``: finds the verb's file, and turns mistakes into one line."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence

from locatvit.errors import LocAtError, near_matches

VERBS = {
    "quickstart": "train a small ViT with and without LocAt, compare them on a page (5 minutes, no download)",
    "train": "train a classifier",
    "validate": "measure a classifier on the validation images",
    "segment": "train a segmentation head on a frozen backbone and measure it",
    "predict": "masks and overlays of photos, by a trained segmentation head",
    "hummingbird": "dense retrieval: label patches by the nearest training patches, no training",
    "data": "images with masks: prepare official downloads, and look at what is in them",
    "profile": "what a model costs with LocAt and without: parameters, FLOPs, speed, memory",
    "export": "write a model as ONNX or a torch.export program, compared with the model",
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
_MISTAKE, _INTERRUPTED = 2, 130
_GOES_ON = "the same command goes on from the last checkpoint, if one was written"
_BEGINS_ANEW = "the same command begins anew"
_WITHOUT_CHECKPOINTS = ("validate", "predict", "profile", "export", "report")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        arguments: the verb and its options; None for those of the process.

    Returns:
        The exit code: 0; 2 for a mistake, with one line on standard error that tells how to mend it; 130
        when stopped.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.WARNING, format="locatvit: %(levelname)s: %(message)s")
    try:
        return _dispatch(arguments)
    except LocAtError as error:
        return _stop(f"error: {error}", _MISTAKE)
    except BrokenPipeError:
        # whoever reads our output has gone; nothing more may be written to it, also not at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _stop(f"error: {_describe(error)}; check that the path exists, may be used and has space", _MISTAKE)
    except KeyboardInterrupt as stop:
        # Ctrl-C itself has no words; a verb that knows more than these gives its own
        words = _BEGINS_ANEW if arguments and arguments[0] in _WITHOUT_CHECKPOINTS else _GOES_ON
        return _stop(f"stopped; {str(stop) or words}", _INTERRUPTED)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, VERBS))
        print(_HELP.format(verbs="\n".join(f"  {verb:{width}}  {text}" for verb, text in VERBS.items())))
        return 0 if arguments else _MISTAKE
    if arguments[0] in ("-V", "--version"):
        from locatvit import __version__

        print(f"locatvit {__version__}")
        return 0
    verb = arguments[0]
    if verb not in VERBS:
        raise LocAtError(f"{verb!r} is no verb; {near_matches(verb, VERBS)}")
    importlib.import_module(f"locatvit.cli.{verb}").run(arguments[1:])
    return 0


def _describe(error: OSError) -> str:
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename is not None else reason


def _stop(message: str, code: int) -> int:
    print(f"locatvit: {message}", file=sys.stderr)
    return code
