"""Results with made-up figures, as a run would write them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from locatvit.results import Result, append_metrics, write_result

BOTH = {"gaug": True, "prr": True}
ENVIRONMENT = {
    "versions": {"locatvit": "0.1.0", "torch": "2.15.0"},
    "commit": "0123456789ab",
    "device": "cpu, 2 threads",
    "date": "2026-01-15",
}


def classification(top1: float, *, locat: dict[str, Any] | None = None, seed: int = 0, **config: Any) -> Result:
    return Result(
        task="classification",
        protocol="classification",
        model={
            "name": "vit_scenes",
            "label": "ViT",
            "kwargs": {"depth": 6},
            "locat": locat,
            "parameters": 712_330,
        },
        data={"name": "scenes", "split": "val", "images": 1000, "classes": 3},
        metrics={"top1": top1, "loss": 1.25},
        config={"epochs": 8, "output": f"/home/someone/runs/s{seed}", **config, "seed": seed},
        environment=ENVIRONMENT,
        seconds=61.0,
    )


def segmentation(miou: float, *, locat: dict[str, Any] | None = None, seed: int = 0, **config: Any) -> Result:
    result = classification(0.0, locat=locat, seed=seed, **config)
    return replace(
        result,
        task="segmentation",
        protocol="locat",
        metrics={"miou": miou, "pixel_accuracy": 0.5},
        per_class={"background": 0.75, "disc": miou, "ring": None},
    )


def paper_run(name: str, data: str, locat: dict[str, Any] | None = None, **kwargs: Any) -> Result:
    """A classification run of a registered model, with the model's arguments."""
    result = classification(0.5, locat=locat)
    return replace(
        result,
        model={**result.model, "name": name, "kwargs": kwargs},
        data={**result.data, "name": data},
    )


def write_run(folder: Path, result: Result, rows: list[dict[str, Any]] | None = None) -> Path:
    folder.mkdir(parents=True)
    write_result(folder, result)
    for row in rows or []:
        append_metrics(folder, row)
    return folder
