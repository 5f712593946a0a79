"""Two real processes train one run: the losses equal those of one process, and one of them may end.

They talk over this machine's loopback. The same run is trained by two processes, one of which is
killed; by two processes that get a signal to stop; by one process; and by two until the end.
"""

import pathlib
import re
import signal
import socket
import subprocess

import numpy as np
import pytest
from PIL import Image
from trainings import start, wait_for_step

from ddpm_jax.errors import UserError
from ddpm_jax.runs import metrics
from ddpm_jax.runtime import distributed

pytestmark = pytest.mark.slow

HEARTBEAT = 10
OVERRIDES = {
    "train.num_steps": 100,
    "train.batch_size": 16,
    "train.checkpoint_every": 20,
    "train.log_every": 5,
    "train.num_samples": 6,
    "sample.chunk_size": 2,  # several chunks, shared by the processes
    "eval.every": 50,
    "process.schedule": "cosine",
    "process.num_timesteps": 10,
    "model.channels": 8,
    "model.num_res_blocks": 1,
    "optim.warmup_steps": 5,
}


def start_two(workdir: pathlib.Path, cache: pathlib.Path, *of_second: str):
    """Start two processes with one device each, which shard the state; `of_second` adds flags."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    settings = ["--config.mesh.fsdp=2", f"--heartbeat={HEARTBEAT}"]
    return [
        start(
            workdir, cache, 1, OVERRIDES, f"--distributed=127.0.0.1:{port},2,{i}", *settings, *flags
        )
        for i, flags in enumerate([(), of_second])
    ]


def end(processes: list[subprocess.Popen], *codes: int, limit: int = 300) -> list[str]:
    """Wait for the processes to end with their codes; return their output."""
    said = [process.communicate(timeout=limit)[0] for process in processes]
    assert [process.returncode for process in processes] == list(codes), "\n".join(said)
    return said


def losses(workdir: pathlib.Path) -> dict[tuple[int, str], float]:
    """Read the losses of a run by step and name."""
    return {
        (row["step"], name): row[name]
        for row in metrics.read(workdir / "metrics.jsonl")
        for name in ("loss", "held_out_loss", "grad_norm", "param_norm")
        if name in row
    }


def resumed_at(said: str) -> int:
    match = re.search(r"resumed at step (\d+)", said)
    assert match, said
    return int(match[1])


def test_two_processes_train_as_one_does_and_end_together(tmp_path):
    cache, one, two = tmp_path / "cache", tmp_path / "one", tmp_path / "two"
    end([start(one, cache, 2, OVERRIDES)], 0)

    # kill -9 of one ends the other within the heartbeat, and it says why
    processes = start_two(two, cache)
    wait_for_step(processes[0], 30)
    assert processes[1].poll() is None
    processes[1].kill()
    # the machine may be busy, but without the flag it takes 100 s or more
    said, _ = end(processes, 75, -signal.SIGKILL, limit=9 * HEARTBEAT)
    assert "error: another process of this run ended" in said, said

    # the same commands resume; SIGTERM to either saves, and both stop at one step
    processes = start_two(two, cache)
    said = wait_for_step(processes[0], 45)
    assert resumed_at(said) >= 20
    processes[1].send_signal(signal.SIGTERM)
    said, other = end(processes, 143, 143)
    saved = int(re.search(r"stopped by signal 15 at step (\d+)", said)[1])
    assert (two / "checkpoints" / str(saved)).is_dir()
    assert "step" not in re.sub(r"\[Gloo\].*|.*preemption_notifier.*", "", other), "it logs too"

    # one process reads what two have saved ...
    process = start(two, cache, 2, OVERRIDES)
    said = wait_for_step(process, saved + 5)
    assert resumed_at(said) == saved
    process.send_signal(signal.SIGTERM)
    end([process], 143)
    # ... and two what one has saved, to the end
    said, _ = end(start_two(two, cache), 0, 0)
    assert resumed_at(said) > saved

    expected, found = losses(one), losses(two)
    stops = {step for step, _ in found} - {step for step, _ in expected}
    assert {step for step, _ in expected} <= {step for step, _ in found}
    for key, value in expected.items():
        before = [step for step in stops if key[0] - 5 <= step < key[0]]
        if key[1] == "loss" and before:
            continue  # a mean over the steps since the stop
        np.testing.assert_allclose(found[key], value, rtol=1e-5, err_msg=str(key))
    # the samples that the processes shared are those of one
    (name,) = (path.name for path in (one / "samples").iterdir())
    grids = [np.asarray(Image.open(run / "samples" / name)).astype(int) for run in (one, two)]
    assert [path.name for path in (two / "samples").iterdir()] == [name]
    assert grids[0].std() > 20 and np.abs(grids[0] - grids[1]).max() <= 2


def test_processes_of_different_flags_are_refused(tmp_path):
    processes = start_two(tmp_path / "run", tmp_path / "cache", "--config.train.seed=1")
    said, other = [process.communicate(timeout=300)[0] for process in processes]
    assert processes[0].returncode == 2 and "error: the processes have different config" in said
    # the leader may have ended before the other could say it too
    assert processes[1].returncode in (2, -signal.SIGABRT), other
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "where", ["here", "10.0.0.1,2,0", "10.0.0.1:1234,2", "10.0.0.1:1234,2,2", "10.0.0.1:1234,a,0"]
)
def test_an_address_that_is_none_is_refused(where):
    with pytest.raises(UserError, match="HOST:PORT,COUNT,INDEX"):
        distributed.connect(where, HEARTBEAT)
