"""The time that each stage of an experiment takes, over all starts of its command."""

import contextlib
import json
import pathlib
import time
from collections.abc import Iterator

from ddpm_jax.runtime.files import replacing


class Clock:
    """Adds up the seconds of each stage over all starts of the command, in a JSON file."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the time inside `with`, also if the stage is interrupted."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent
            with replacing(self._path) as part:
                part.write_text(json.dumps(self.seconds, indent=2) + "\n")
