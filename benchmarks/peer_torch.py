"""Comparison with torch on two CPU cores or on one GPU.

    python -m benchmarks.peer_torch --config=experiments/digits.py --what=train
    python -m benchmarks.peer_torch --config=experiments/cifar10.py --shape=32,32,3 --device=gpu \
        --config.model.dtype=bfloat16 --steps=100 --contenders=ours,compile

The same network in JAX and in torch does the same work with the same type, on a CPU with the same
number of threads. On a GPU, bfloat16 is torch's autocast. Torch's network is diffusers'
UNet2DModel, with the settings of Ho et al.; the script asserts that the numbers of parameters are
equal. --what is one of

  train   the train step of the config: loss, gradient, clip, Adam, EMA. The images of each step
          come from the host's memory.
  sample  ancestral sampling of a batch; the time is that of one step

Each contender is a process that lives through the whole comparison. The contenders take turns, A B
C A B C ... A ratio is between two turns of the same round. The table has the median [min, max] of
the ratios. Contenders:

  ours     this library
  eager    torch
  last     torch with channels_last
  compile  torch with channels_last and torch.compile (compiles for a minute or two; needs a C++
           compiler)

Torch uses a fused Adam, a foreach EMA, and a minimal sampling loop under no_grad. All contenders
keep freed memory in the process, as the mains of this library do. On a GPU ours fuses
`train.steps_per_call` steps, as in a training. Needs the `peers` extra.
"""

import contextlib
import dataclasses
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
from absl import flags

from benchmarks.peers.networks import diffusers_unet
from ddpm_jax import build
from ddpm_jax.config import Config, from_dict
from ddpm_jax.errors import UserError
from ddpm_jax.models import count_parameters
from ddpm_jax.runtime import devices, sharding
from ddpm_jax.timesteps import uniform
from ddpm_jax.training.parts import build_parts
from ddpm_jax.training.programs import Programs, steps_per_call
from experiments import command, config_flag

CONFIG = config_flag.define("The experiment's config file.")
WHAT = flags.DEFINE_enum("what", "train", ["train", "sample"], "Work to time, explained above.")
SHAPE = flags.DEFINE_list("shape", ["8", "8", "1"], "Shape of the images: H,W,C.")
STEPS = flags.DEFINE_integer("steps", 20, "Number of train steps, or of sampling steps, per turn.")
ROUNDS = flags.DEFINE_integer("rounds", 7, "Number of turns of each contender.")
CONTENDERS = flags.DEFINE_list(
    "contenders", ["ours", "eager", "last", "compile"], "Contenders to run, explained above."
)
DEVICE = flags.DEFINE_enum("device", "cpu", ["cpu", "gpu"], "Where all contenders run.")
WORKER = flags.DEFINE_string(
    "worker", None, "Internal: name of the contender that this process is."
)

THREADS = 2  # on a CPU
BATCHES = 10  # different batches of images on the host

Turn = Callable[[int], object]  # number of steps -> done when it returns


def ours(config: Config, shape: tuple[int, int, int], what: str, steps: int) -> tuple[Turn, int]:
    """Return our turn, and the number of parameters."""
    mesh = devices.make_mesh(config)
    parts = build_parts(config, shape, 10, mesh=mesh)
    programs = Programs(config, parts, mesh, jax.ShapeDtypeStruct(shape, np.uint8), {})
    state = programs.init()
    size, number = config.train.batch_size, count_parameters(state.params)
    if what == "sample":
        config = dataclasses.replace(
            config, sample=dataclasses.replace(config.sample, num_steps=steps)
        )
        model = build.model(config.model, shape, 10)
        sample = build.sample_fn(config, build.process(config.process), model, shape)
        # no weight is zero, as after training
        params = jax.tree.map(lambda p: np.asarray(p) + np.float32(0.01), state.params)
        params = jax.device_put(params)
        return lambda _: jax.block_until_ready(sample(params, jax.random.key(0), size)), number

    fused = steps_per_call(config)
    if steps % fused:
        raise UserError(f"--steps={steps} is not a multiple of the {fused} steps of a call")
    front, place = ((), sharding.over_batch(mesh))
    if fused > 1:
        front, place = ((fused,), sharding.over_batch(mesh, axis=1))
    step = programs.step(fused if fused > 1 else None)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (*front, size, *shape), np.uint8),
        "label": np.zeros((*front, size), np.int32),
    }

    def turn(steps: int) -> None:
        nonlocal state
        for _ in range(steps // fused):
            state, metrics = step(state, jax.device_put(batch, place))
        jax.block_until_ready((state, metrics))

    return turn, number


def theirs(
    config: Config, shape: tuple[int, int, int], what: str, steps: int, setting: str
) -> tuple[Turn, int]:
    """Return torch's turn, and the number of parameters."""
    import diffusers
    import torch

    height, width, channels = shape
    optim = config.optim
    if DEVICE.value == "gpu":
        torch.set_default_device("cuda")
        # matches JAX's default for products of float32 on a GPU
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    else:
        torch.set_num_threads(THREADS)
    half = config.model.dtype == "bfloat16"
    net = diffusers.UNet2DModel(
        sample_size=(height, width),
        in_channels=channels,
        out_channels=channels,
        **diffusers_unet(config.model, height),
    )
    number = sum(p.numel() for p in net.parameters())
    layout = torch.contiguous_format if setting == "eager" else torch.channels_last
    net = net.to(memory_format=layout).train(what == "train")
    params = list(net.parameters())
    network = torch.compile(net) if setting == "compile" else net
    process = build.process(config.process)
    T, size = process.num_timesteps, config.train.batch_size
    table = np.asarray(process.alphas_cumprod)  # [T+1], of t = 0 too
    alpha_bar = torch.tensor(table, device=params[0].device)

    def noise() -> torch.Tensor:
        return torch.randn(size, channels, height, width).to(memory_format=layout)

    def types() -> contextlib.AbstractContextManager:
        kind = params[0].device.type
        return torch.autocast(kind, torch.bfloat16) if half else contextlib.nullcontext()

    def finish() -> None:
        if DEVICE.value == "gpu":
            torch.cuda.synchronize()

    if what == "sample":
        grid = [int(t) for t in uniform(T, steps)]
        table = table.tolist()

        @torch.no_grad()
        def sample(_: int) -> None:
            x = noise()
            for t, s in zip(grid[:-1], grid[1:], strict=True):
                with types():
                    eps = network(x, torch.full((size,), t - 1)).sample
                eps = eps.float()
                at, ats, as_ = table[t], table[t] / table[s], table[s]
                x_0 = ((x - (1 - at) ** 0.5 * eps) / at**0.5).clamp_(-1, 1)
                x = x_0 * (as_**0.5 * (1 - ats) / (1 - at)) + x * (ats**0.5 * (1 - as_) / (1 - at))
                if s:
                    x = x + (1 - ats) ** 0.5 * noise()
            finish()

        return sample, number

    averages = [p.detach().clone() for p in params]
    adam = torch.optim.Adam(params, lr=optim.learning_rate, fused=True)
    batches = torch.randint(
        0, 256, (BATCHES, size, channels, height, width), dtype=torch.uint8, device="cpu"
    )
    if DEVICE.value == "gpu":
        batches = batches.pin_memory()

    def train(steps: int) -> None:
        for i in range(steps):
            images = batches[i % BATCHES].to(params[0].device, non_blocking=True)
            x_0 = (images.float() / 127.5 - 1).to(memory_format=layout)
            t = torch.randint(1, T + 1, (size,))
            eps, a = noise(), alpha_bar[t][:, None, None, None]
            with types():
                out = network(a.sqrt() * x_0 + (1 - a).sqrt() * eps, t - 1).sample
            torch.nn.functional.mse_loss(out.float(), eps).backward()
            torch.nn.utils.clip_grad_norm_(params, optim.clip_norm)
            adam.step()
            adam.zero_grad()
            with torch.no_grad():
                torch._foreach_lerp_(averages, params, 1 - optim.ema_decay)
        finish()

    return train, number


def work(config: Config, shape: tuple[int, int, int]) -> None:
    """Be a contender: take a turn for every line of stdin, and print its seconds per step."""
    args = (config, shape, WHAT.value, STEPS.value)
    turn, number = ours(*args) if WORKER.value == "ours" else theirs(*args, WORKER.value)
    start = time.perf_counter()
    turn(2 if DEVICE.value == "cpu" else STEPS.value)  # compiles, and torch allocates
    print(f"{WORKER.value}: ready in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    print(number, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        turn(STEPS.value)
        print((time.perf_counter() - start) / STEPS.value, flush=True)


def compare(workers: dict[str, subprocess.Popen], rounds: int) -> dict[str, list[float]]:
    """Let the workers take turns; return the seconds per step of each turn, by worker."""
    numbers = {name: int(worker.stdout.readline()) for name, worker in workers.items()}
    assert len(set(numbers.values())) == 1, f"networks of different sizes: {numbers}"
    print(f"{next(iter(numbers.values())):,} parameters in each")
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            worker.stdin.write("go\n")
            worker.stdin.flush()
            seconds[name].append(float(worker.stdout.readline()))
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return seconds


def report(seconds: dict[str, list[float]]) -> None:
    """Print the times of each contender, and their ratios to those of the first."""
    first = next(iter(seconds))
    for name, times in seconds.items():
        ratios = [b / a for a, b in zip(seconds[first], times, strict=True)]
        ms, r = (
            f"{statistics.median(v):.4g} [{min(v):.4g}, {max(v):.4g}]"
            for v in ([1e3 * t for t in times], ratios)
        )
        print(f"{name:10s} {ms} ms per step; divided by {first}: {r}")


def check(config: Config) -> None:
    """Check that torch's network can do the same.

    Raises:
      UserError: the network has classes or patches.
    """
    if config.model.class_conditional:
        raise UserError("torch's network has no classes; set config.model.class_conditional=False")
    if config.model.patch_size > 1:
        raise UserError(
            f"torch's network has no patches; set config.model.patch_size=1 in place of "
            f"{config.model.patch_size}, and --shape to the shape of the image in patches"
        )


def main() -> None:
    config = from_dict(CONFIG.value)
    check(config)
    shape = tuple(int(side) for side in SHAPE.value)
    if DEVICE.value == "cpu":
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    if WORKER.value:
        work(config, shape)
        return
    print(f"{WHAT.value}, batch {config.train.batch_size}, images {shape}, {STEPS.value} steps")
    command_line = [sys.executable, "-m", "benchmarks.peer_torch", *sys.argv[1:]]
    # The contenders share the memory of a GPU, and torch's need no JAX on it.
    shared = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    workers = {
        name: subprocess.Popen(
            [*command_line, f"--worker={name}"],
            env=shared if name == "ours" else {**shared, "JAX_PLATFORMS": "cpu"},
            **pipes,
        )
        for name in CONTENDERS.value
    }
    report(compare(workers, ROUNDS.value))


if __name__ == "__main__":
    command.run(main)
