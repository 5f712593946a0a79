"""The arithmetic of `benchmarks/fashion_peers.py`: speeds, patches, the table of results."""

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ddpm_jax.evaluation.table import Row

COLUMNS = {  # name of a metric -> heading
    "fd_train": "Fréchet, train",
    "fd_test": "Fréchet, test",
    "kd_train": "kernel, train",
    "kd_test": "kernel, test",
    "precision_train": "precision",
    "recall_train": "recall",
}


Measured = dict[str, list[float | None]]  # name of a metric -> value, error


def steps_per_second(rows: Sequence[Mapping[str, float]]) -> float:
    """Return the speed of a short training.

    Args:
      rows: its loss curve. The first row is left out if there are others, because the first steps
        are slow.
    """
    first = rows[0] if len(rows) > 1 else {"step": 0, "seconds": 0.0}
    return (rows[-1]["step"] - first["step"]) / (rows[-1]["seconds"] - first["seconds"])


def arrange(images: np.ndarray, side: int, patch: int) -> np.ndarray:
    """Return pictures with a black border, and their patches as channels.

    Args:
      images: uint8 [N, 28, 28, 1].
      side: height and width with the border.
      patch: side of a patch in pixels; 1 is no patches.
    """
    border, n = (side - images.shape[1]) // 2, side // patch
    images = np.pad(images, [(0, 0), (border, border), (border, border), (0, 0)])
    images = images.reshape(-1, n, patch, n, patch, 1)
    return images.swapaxes(2, 3).reshape(-1, n, n, patch**2)


def restore(images: np.ndarray, patch: int) -> np.ndarray:
    """Return pictures [N, H, W, 1] from their patches; the border remains."""
    _, n, _, _ = images.shape
    images = images.reshape(-1, n, n, patch, patch, 1).swapaxes(2, 3)
    return images.reshape(-1, n * patch, n * patch, 1)


def measured(rows: Sequence[Row]) -> Measured:
    """Return the metrics of COLUMNS from the rows of `fashion_quality.judge`."""
    found: Measured = {}
    for row in rows:
        match = re.fullmatch(r"([a-z]+)\d+k?(_train|_test)", row.name)
        if match and match[1] + match[2] in COLUMNS:
            found[match[1] + match[2]] = [row.value, row.error]
    return found


def table(results: Mapping[str, Mapping[str, Any]], floor: Measured) -> str:
    """Return the table in Markdown.

    Args:
      results: name -> the result of a training, as `run` returns it.
      floor: the metrics of real pictures.
    """
    heads = ["", "parameters", "sampler", "images/s", "steps x batch", "preparation"]
    lines = [[*heads, *COLUMNS.values()], ["---"] * (len(heads) + len(COLUMNS))]
    for name, result in results.items():
        lines.append(
            [
                name,
                f"{result['parameters']:,}",
                result["sampler"],
                _speeds(result["images_per_second"]),
                f"{result['steps']:,} x {result['batch']}",
                f"{result['preparation']:.0f} s",
                *(_cell(result["metrics"].get(column)) for column in COLUMNS),
            ]
        )
    lines.append(["real pictures"] + [""] * (len(heads) - 1))
    lines[-1] += [_cell(floor.get(column)) for column in COLUMNS]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _speeds(speeds: Sequence[float]) -> str:
    low, *_, high = sorted(speeds)
    return f"{statistics.median(speeds):.0f} [{low:.0f}, {high:.0f}]"


def _cell(estimate: Sequence[float | None] | None) -> str:
    value, error = estimate or (None, None)
    if value is None:
        return "--"
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"


def verdict(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a sentence that compares our Fréchet distance with that of the best peer.

    A distance is the mean over the trainings of a contender.
    """
    found: dict[str, list[float]] = {}
    for name, result in results.items():
        value = result["metrics"].get("fd_train", [None])[0]
        if value is not None:
            found.setdefault(name.split(",")[0], []).append(value)
    peers = {name: float(np.mean(each)) for name, each in found.items()}
    ours = peers.pop("ours", None)
    if ours is None or not peers:
        return "no comparison: it needs the Fréchet distances of ours and of a peer"
    best = min(peers, key=lambda name: peers[name])
    ratio = ours / peers[best]
    side = "below" if ratio < 1 else "above"
    return (
        f"our Fréchet distance to the training images is {ours:.4g}, {abs(1 - ratio):.0%} {side} "
        f"that of the best peer ({best}: {peers[best]:.4g})"
    )
