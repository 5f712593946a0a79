"""A run compiles all that it needs at its beginning, however long it is."""

import jax
import pytest
from test_memory import TINY

from ddpm_jax import config as config_lib
from ddpm_jax.training.loop import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.quick_to_compile,
    pytest.mark.loose_promotion(reason="optax's schedules multiply floats with int32 counts"),
]


def test_a_longer_run_compiles_no_more_than_a_shorter_one(tmp_path):
    """All programs are made by the first log line, held-out loss and checkpoint."""
    compiled = []

    def listen(name: str, seconds: float, **_) -> None:
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    counts = []
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for num_steps in (4, 4, 12):  # the first of them makes what later runs find
            before = len(compiled)
            config = config_lib.from_dict(
                TINY | {"train": TINY["train"] | {"num_steps": num_steps}}
            )
            train(config, tmp_path / f"{len(counts)}")
            counts.append(len(compiled) - before)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    print(counts)
    assert 0 < counts[2] <= counts[1], counts
