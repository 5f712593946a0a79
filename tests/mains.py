"""The mains of `experiments/` run in this process: the same code as the real command, no start-up.

`tests/test_mains_runs.py` starts each main once as a real process.
"""

import contextlib
import io
import logging
import pathlib
import runpy
import sys
import threading
import warnings
from typing import NamedTuple

import jax

# Imported for the flags that it defines: they must exist before the flags are saved.
from absl import app
from absl import logging as absl_logging
from absl.testing import flagsaver
from array_record.python import array_record_data_source  # noqa: F401

ROOT = pathlib.Path(__file__).parents[1]


class Finished(NamedTuple):
    """What a command left: its exit code and its two outputs."""

    returncode: int
    stdout: str
    stderr: str


def run(name: str, *arguments: str, package: str = "experiments") -> Finished:
    """Run `python -m <package>.<name> *arguments` in this process.

    The flags, the logs, the current directory and the hooks are then as they were before.
    """
    code = 0
    with _as_before(), contextlib.chdir(ROOT):
        with contextlib.redirect_stdout(io.StringIO()) as stdout:
            with contextlib.redirect_stderr(io.StringIO()) as stderr:
                sys.argv = [f"{name}.py", *arguments]
                try:
                    runpy.run_module(f"{package}.{name}", run_name="__main__", alter_sys=True)
                except SystemExit as exit_:
                    code = exit_.code or 0
    return Finished(code, stdout.getvalue(), stderr.getvalue())


@contextlib.contextmanager
def _as_before():
    app.define_help_flags()
    values, argv = flagsaver.save_flag_values(), sys.argv
    logger = logging.getLogger("ddpm_jax")
    logs = logger.handlers[:], logger.level, logger.propagate
    hooks = sys.unraisablehook, sys.excepthook, threading.excepthook
    verbosity = absl_logging.get_verbosity()
    try:
        with (
            jax.numpy_dtype_promotion("standard"),
            jax.numpy_rank_promotion("allow"),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", DeprecationWarning)  # as in a process
            yield
    finally:
        flagsaver.restore_flag_values(values)
        sys.argv = argv
        logger.handlers[:], logger.level, logger.propagate = logs
        sys.unraisablehook, sys.excepthook, threading.excepthook = hooks
        absl_logging.set_verbosity(verbosity)
