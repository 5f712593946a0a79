"""A run on the disk: its work directory, checkpoints and metrics; `open_run` reads one."""

from ddpm_jax.runs.open import Run, load, open_run

__all__ = ["Run", "load", "open_run"]
