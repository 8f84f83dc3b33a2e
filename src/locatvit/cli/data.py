"""``locatvit data``."""

from __future__ import annotations

from collections.abc import Sequence

from locatvit.cli.options import make_parser, parse, read_options
from locatvit.data.prepare import CONVERTERS
from locatvit.data.segmentation_sets import NUM_TRAINAUG, SETS
from locatvit.errors import LocAtError, near_matches
from locatvit.recipes.data_config import InspectConfig, PrepareConfig

COMMANDS = ("prepare", "inspect")

_HELP = """usage: locatvit data prepare NAME [options]
       locatvit data inspect [options]

Images with masks: bring official downloads into one layout, and look at what is in them.

commands:
  prepare  turn an official download into the layout that segment and hummingbird read
  inspect  sizes, channel statistics, shares of the classes, faulty files; a sheet of images

examples:
  ADE20K, unpacked in /data/ade, prepared within it (images are linked and take no room), then used:
    locatvit data prepare ade20k --root /data/ade
    locatvit segment --backbone runs/locatvit_tiny --data.name ade20k --data.root /data/ade
  a sheet of images and masks, and all numbers as JSON:
    locatvit data inspect --data.name ade20k --data.root /data/ade --output ade20k.png

data sets, their official pages and layouts:
{sets}
  folder
    Any data of your own in the prepared layout: images/{{train,val}}/NAME.jpg, annotations/{{train,val}}/NAME.png
    (8-bit, pixel = class, 255 = ignore) and classes.txt (a name a line).

Nothing is downloaded: the data sets have terms that you accept on their pages. Each command has its own help:
locatvit data prepare --help
"""
_PREPARE_EXAMPLES = f"""examples:
  PASCAL VOC 2012 with the augmented list of {NUM_TRAINAUG:,} images; SBD lies elsewhere:
    locatvit data prepare voc2012 --root VOCdevkit --train_list trainaug --sbd benchmark_RELEASE
  COCO-Stuff's validation images alone, on another disk (images are then copied), by 4 processes:
    locatvit data prepare coco_stuff --root coco --output /ssd/coco_stuff --num_workers 4 --partial
  a folder of your own, checked: every mask is read and every image counted, nothing is written:
    locatvit data prepare folder --root my_data
NAME is one of {", ".join(CONVERTERS)}.
Written: images/{{train,val}}, annotations/{{train,val}} (8-bit PNG, pixel = class, 255 = ignore), classes.txt and
dataset.json (counts, colours, source, paper to cite). A preparation that was stopped goes on where it was when the same
command is given again. Pages and layouts of the official downloads: locatvit data --help
"""
_INSPECT_EXAMPLES = """examples:
  tables of a data set that was prepared:
    locatvit data inspect --data.name cityscapes --data.root /data/cityscapes
  with a sheet of 16 images beside their masks (camvid.png) and all numbers (camvid.json):
    locatvit data inspect --data.name camvid --data.root camvid --output camvid.png
  a large set, a first look: 500 images of the validation split:
    locatvit data inspect --data.name coco_stuff --data.root coco --split val --max_images 500
"""
_STOPPED = "the files that are there already are kept, and the same command goes on with the rest"


def run(arguments: Sequence[str]) -> None:
    """Run one of the two commands."""
    if arguments and arguments[0] in ("-h", "--help", "help"):
        print(_HELP.format(sets="\n".join(_about(name) for name in SETS)), end="")
        return
    if not arguments or arguments[0] not in COMMANDS:
        given = f"{arguments[0]!r} is no command of locatvit data" if arguments else "locatvit data has no command"
        raise LocAtError(f"{given}; give prepare or inspect, see locatvit data --help")
    (_prepare if arguments[0] == "prepare" else _inspect)(arguments[1:])


def _about(name: str) -> str:
    known = SETS[name]
    counts = " + ".join(f"{count:,} {split}" for split, count in known.num_images.items())
    return f"  {name}\n    {known.title}: {counts} images, {known.page}\n    {known.layout}"


def _prepare(arguments: Sequence[str]) -> None:
    parser = make_parser(
        "data prepare",
        "Turn an official download into the layout that the other verbs read, and compare its counts.",
        _PREPARE_EXAMPLES,
    )
    parser.usage = "locatvit data prepare NAME [options]"
    parser.add_class_arguments(PrepareConfig, None, skip={"partial"})
    parser.add_argument(
        "--partial",
        action="store_true",
        help="prepare what is there, though images of the official data set are missing",
    )
    name = arguments[0] if arguments and not arguments[0].startswith("-") else None
    config, _ = parse(parser, arguments[name is not None :], PrepareConfig)
    if name is None:
        raise LocAtError(f"no data set is named; write locatvit data prepare NAME ..., one of {', '.join(CONVERTERS)}")
    if name not in CONVERTERS:
        raise LocAtError(f"unknown data set {name!r}; {near_matches(name, CONVERTERS)}")

    from locatvit.cli.show import show_table
    from locatvit.recipes.data_prepare import prepare_data, prepared_table

    try:
        prepared = prepare_data(name, config)
    except KeyboardInterrupt:
        # main says this in the place of what holds for runs
        raise KeyboardInterrupt(_STOPPED) from None
    table, notes = prepared_table(prepared)
    show_table(table)
    print("\n".join(notes))
    root = config.root if prepared.folder is None else prepared.folder
    print(f"next: locatvit data inspect --data.name {name} --data.root {root} --output {name}.png")


def _inspect(arguments: Sequence[str]) -> None:
    config, _ = read_options(
        arguments, InspectConfig, "data inspect",
        "Tell what is in a data set of images with masks, and draw a sheet of it.", _INSPECT_EXAMPLES,
    )  # fmt: skip

    from locatvit.cli.show import show_table
    from locatvit.recipes.data_inspect import class_table, inspect_data, notes, split_table

    found = inspect_data(config)
    show_table(split_table(found))
    show_table(class_table(found))
    for note in notes(found):
        print(note)
    if found.files:
        print(f"written: {', '.join(map(str, found.files))}")
    else:
        print("for a sheet of images and a JSON file of all numbers: --output sheet.png")
