"""The quick start: a small ViT and its LocAt twin, trained, segmented and set side by side on one page."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import redirect_stderr
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from locatvit.recipes.config import SegmentRun, TrainRun
from locatvit.recipes.quickstart_config import QuickstartConfig
from locatvit.recipes.quickstart_report import write_page
from locatvit.results import Result, read_metrics, read_result

_LOG_FILE = "log.txt"
_SECONDS_BETWEEN_LOOKS = 0.5


def quickstart(config: QuickstartConfig) -> tuple[list[Result], Path]:
    """Train and measure every run, two at a time, and write the page. Started again, it goes on where it was.

    Returns:
        All results, classification before segmentation of each run, and the page's path.

    Raises:
        LocAtError: whatever a run raises.
    """
    started = time.monotonic()
    runs = config.runs()
    # small models gain little from a second core: two runs on a core each are faster than one after the other
    side_by_side = max(1, min(2, os.cpu_count() or 1, len(runs)))
    threads = max(1, (os.cpu_count() or 1) // side_by_side)
    with ProcessPoolExecutor(side_by_side, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_work, *pair, threads) for pair in runs]
        _watch(runs, futures)
        for future in futures:
            future.result()
    results = [read_result(run.run_dir) for pair in runs for run in pair]
    page = write_page(config, runs, results, seconds=time.monotonic() - started)
    return results, page


def _work(training: TrainRun, segmentation: SegmentRun, threads: int) -> None:
    """One run from start to end, in a process of its own; its lines go to a log."""
    from locatvit.recipes.classification import train
    from locatvit.recipes.segmentation import segment

    torch.set_num_threads(threads)
    training.run_dir.mkdir(parents=True, exist_ok=True)
    with (training.run_dir / _LOG_FILE).open("a", encoding="utf-8") as log, redirect_stderr(log):
        train(training)
        segment(segmentation)


def _watch(runs: list[tuple[TrainRun, SegmentRun]], futures: list[Future[None]]) -> None:
    """Show how far each run is, from its metrics, until all have ended or one has failed."""
    console = Console(stderr=True)
    bars = Progress(
        TextColumn("{task.description:10}"), BarColumn(), TextColumn("{task.fields[now]:44}"), TimeElapsedColumn(),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip
    with bars:
        tasks = [
            bars.add_task(training.run_dir.name, total=training.training.epochs + 1, now="") for training, _ in runs
        ]
        while not all(future.done() for future in futures):
            if any(future.done() and future.exception() for future in futures):
                break
            _show(bars, tasks, runs)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        states = _show(bars, tasks, runs)
    if not console.is_terminal:
        for (training, _), now in zip(runs, states, strict=True):
            print(f"{training.run_dir.name}: {now}", file=sys.stderr)


def _show(bars: Progress, tasks: list[TaskID], runs: list[tuple[TrainRun, SegmentRun]]) -> list[str]:
    """Move every bar to where its run is; the runs' states in words."""
    states = [_state(*pair) for pair in runs]
    for task, (done, now) in zip(tasks, states, strict=True):
        bars.update(task, completed=done, now=now)
    return [now for _, now in states]


def _state(training: TrainRun, segmentation: SegmentRun) -> tuple[int, str]:
    rows, head_rows = read_metrics(training.run_dir), read_metrics(segmentation.run_dir)
    epochs = training.training.epochs
    if not rows:
        return 0, f"epoch 1 of {epochs}"
    top1 = f"top-1 {100 * rows[-1].get('top1', 0):.1f} %"
    if head_rows and "miou" in head_rows[-1]:
        return epochs + 1, f"{top1}, mIoU {100 * head_rows[-1]['miou']:.1f} %"
    epoch = rows[-1]["epoch"]
    if epoch == epochs:
        return epoch, f"{top1}, training the segmentation head"
    return epoch, f"{top1}, epoch {epoch + 1} of {epochs}"
