"""Scalars of a run for TensorBoard: seconds, epsilon and bytes by round, figures at the end."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared.errors import StorageError

from .metrics import Metrics, read_metrics
from .run_folder import RunFolder


def write_tensorboard(folder: RunFolder | Path) -> None:
    """Writes ``tensorboard/`` anew from rounds.jsonl and metrics.json.

    Raises:
        RunFolderError: the run is not finished.
        StorageError: the folder cannot be written.
    """
    opened = folder if isinstance(folder, RunFolder) else RunFolder(folder)
    metrics = read_metrics(opened.metrics)
    scalars = [*_of_rounds(opened.rounds), *_of_metrics(metrics)]
    try:
        opened.tensorboard.mkdir(parents=True, exist_ok=True)
        for old in opened.tensorboard.glob("events.out.tfevents.*"):
            old.unlink()
        _write(opened.tensorboard, scalars)
    except OSError as error:
        raise StorageError(
            f"{opened.tensorboard} cannot be written: {error.strerror or error}", do="Make room, then report again."
        ) from None


def _write(folder: Path, scalars: list[tuple[str, float, int]]) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder))
    try:
        for tag, value, step in scalars:
            if math.isfinite(value):
                writer.add_event(Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)])))
    finally:
        writer.close()


def _of_rounds(path: Path) -> Iterator[tuple[str, float, int]]:
    """(tag, value, round) of each line; a line that a crash cut short is passed over."""
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            line: dict[str, Any] = json.loads(text)
            step = int(line["round"])
        except (ValueError, KeyError, TypeError):
            continue
        yield "round/seconds", float(line["seconds"]), step
        yield "round/replies", float(len(line["replies"])), step
        for domain, spent in line["epsilon"].items():
            yield f"epsilon/{domain}", math.inf if spent is None else float(spent), step
        for domain, size in line["bytes"].items():
            yield f"bytes up/{domain}", float(size["up"]), step
            yield f"bytes down/{domain}", float(size["down"]), step


def _of_metrics(metrics: Metrics) -> Iterator[tuple[str, float, int]]:
    """Figures of the finished run, all at step 0."""
    for direction in metrics.directions:
        for method, figures in direction.methods.items():
            for name, interval in figures.items():
                yield f"{direction.source} to {direction.target}: {name}/{method}", interval.mean, 0
    for domain, warm in metrics.warm.items():
        for method, figures in warm.methods.items():
            for name, interval in figures.items():
                yield f"{domain} warm: {name}/{method}", interval.mean, 0
