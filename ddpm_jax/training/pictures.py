"""Sample grids of a run during training."""

import logging
import pathlib
import time

import numpy as np

from ddpm_jax.config import Config
from ddpm_jax.errors import NotFiniteError
from ddpm_jax.figures import grids
from ddpm_jax.pixels import to_uint8
from ddpm_jax.runs.metrics import MetricsWriter
from ddpm_jax.runs.workdir import WorkDir
from ddpm_jax.sampling import sample_in_chunks
from ddpm_jax.training.parts import Parts
from ddpm_jax.types import Conditioning, Params

logger = logging.getLogger(__name__)


class Pictures:
    """Draws grids with the same noise and conditioning each time, so two steps can be compared.

    All processes of a run draw the images. Only the process with `enabled` writes the files.

    Args:
      config: the config of the run; `train.num_samples` images are drawn.
      parts: the parts of the run; `parts.draw` must not be None.
      cond: None, or arrays with leading axis `train.num_samples`.
      workdir: the work directory.
      writer: writes the grid for TensorBoard.
      enabled: whether this process writes.
    """

    def __init__(
        self,
        config: Config,
        parts: Parts,
        cond: Conditioning | None,
        workdir: WorkDir,
        writer: MetricsWriter,
        *,
        enabled: bool = True,
    ):
        assert parts.draw is not None  # the loop makes Pictures only if the parts can draw
        self._draw, self._key = parts.draw, parts.sample_key
        self._n = config.train.num_samples
        self._chunk_size = config.sample.chunk_size
        self._workdir = workdir
        self._writer = writer
        self._cond = cond
        self._enabled = enabled

    def path(self, step: int, name: str) -> pathlib.Path:
        """Return the path of the grid that `draw` writes."""
        return self._workdir.samples / f"step_{step:07d}_{name}.png"

    def draw(self, step: int, name: str, params: Params) -> pathlib.Path | None:
        """Draw samples with one set of weights as a grid; return the path of the PNG.

        If the samples are not finite, nothing is written: a warning says so, and the path is None.

        Args:
          step: the step, for the name of the file.
          name: the name of the weights, such as "ema", for the name of the file.
          params: the weights.
        """
        start = time.perf_counter()
        chunks = sample_in_chunks(
            self._draw,
            params,
            self._key,
            self._n,
            self._chunk_size,
            self._cond,
        )
        try:
            images = to_uint8(np.concatenate(list(chunks)))
        except NotFiniteError as error:
            logger.warning("no grid of the %s weights at step %d: %s", name, step, error)
            return None
        grid = grids.make_grid(images, side=32)
        path = self.path(step, name)
        if not self._enabled:
            return path
        grids.save_png(path, grid)
        self._writer.image(step, f"samples_{name}", grid)
        seconds = time.perf_counter() - start
        logger.info("%d samples of the %s weights in %.1f s", self._n, name, seconds)
        return path
