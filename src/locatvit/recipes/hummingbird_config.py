"""What a run of dense retrieval is, as data. No torch: the command line reads this for its help."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from locatvit.data.retrieval_config import RetrievalAugment
from locatvit.evaluation.hummingbird_config import HummingbirdConfig
from locatvit.recipes.config import DataConfig, ModelConfig


@dataclass(frozen=True)
class HummingbirdRun:
    """Dense retrieval on the features of a backbone. Nothing is trained.

    Attributes:
        run_dir: the run's folder: config.yaml, result.json, and while it runs memory/.
        backbone: folder of a training run, whose model and weights are used. Null where model says it.
        model: the backbone, where there is no such folder.
        data: which images and masks (voc2012, ade20k, camvid, folder, scenes, ...). Training images make the memory,
            validation images are the queries.
        augment: what is done to them.
        protocol: memory, vote and score.
    """

    run_dir: Path = Path("runs/hummingbird")
    backbone: Path | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(name="camvid"))
    augment: RetrievalAugment = field(default_factory=RetrievalAugment)
    protocol: HummingbirdConfig = field(default_factory=HummingbirdConfig)
