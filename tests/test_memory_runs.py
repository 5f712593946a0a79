"""The plan of a real step, a run that does not fit, and how often a run compiles."""

import math

import jax
import numpy as np
import pytest
from test_memory import SHAPE, TINY

from ddpm_jax import config as config_lib
from ddpm_jax.errors import UserError
from ddpm_jax.runtime import devices, memory
from ddpm_jax.training.loop import train
from ddpm_jax.training.parts import build_parts
from ddpm_jax.training.programs import Programs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.quick_to_compile,
    pytest.mark.loose_promotion(reason="optax's schedules multiply floats with int32 counts"),
]


def test_the_state_of_the_plan_is_the_state_and_a_batch():
    config = config_lib.from_dict(TINY | {"mesh": {"data": 1}})
    mesh = devices.make_mesh(config)
    parts = build_parts(config, SHAPE, 0, mesh=mesh)
    run = Programs(config, parts, mesh, jax.ShapeDtypeStruct(SHAPE, np.uint8), {})
    leaves = [math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(run.state)]
    batch = 16 * (math.prod(SHAPE) + 4)
    found = memory.of_step(run.step(None))
    assert found.state == pytest.approx(sum(leaves) + batch, rel=1e-3)
    assert found.working > 0


def test_a_run_that_does_not_fit_writes_nothing_but_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "capacity", lambda: 1000)
    with pytest.raises(UserError, match="a train step does not fit into memory: it needs"):
        train(config_lib.from_dict(TINY), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]


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
