"""A plan of a run on a machine that is not here: does it fit, what does a step do, how fast is it?

XLA compiles the run's own train step and sampler for the machine (`runtime.targets`). The memory,
the operations, the bytes and the messages are those of the compiled programs. The times are
estimates. With the shares of `MOST`, `LEAST` and `LINK`, the bounds of the time of a call are

    least = max(operations / rate, bytes / bandwidth)                       messages are hidden
    most  = max(operations / rate, bytes / bandwidth) + messages / link
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ddpm_jax import build
from ddpm_jax.build.sampling import chain_sample_fn, grid
from ddpm_jax.codec import Codec
from ddpm_jax.config import Config
from ddpm_jax.data import latents
from ddpm_jax.data.cond import cond_names
from ddpm_jax.errors import UserError
from ddpm_jax.pretrained import text_encoder
from ddpm_jax.runs.codec import open_codec
from ddpm_jax.runtime import compiler, memory, program, sharding
from ddpm_jax.runtime.devices import make_mesh
from ddpm_jax.runtime.platform import compiled_for
from ddpm_jax.runtime.program import Program
from ddpm_jax.runtime.targets import Device, Target
from ddpm_jax.training.parts import build_parts
from ddpm_jax.training.programs import Programs, steps_per_call

TOKENS = 32  # of a text, for networks with a context


class Shares(NamedTuple):
    """What a program reaches of the rates that the makers state: assumptions, not measurements."""

    compute: float
    bandwidth: float


MOST, LEAST = Shares(0.6, 0.9), Shares(0.2, 0.5)
LINK = 0.5  # the share of the link, if no message is hidden


class Facts(NamedTuple):
    """What the plan needs to know of the data.

    Attributes:
      image_shape: (H, W, C) of the images.
      num_classes: number of classes; 0 is none.
    """

    image_shape: tuple[int, int, int]
    num_classes: int


class Call(NamedTuple):
    """One compiled program of the plan.

    Attributes:
      images: images of a call, on all devices together.
      steps: steps of a call: train steps, or steps of the sampler.
      program: what the program does.
    """

    images: int
    steps: int
    program: Program


class Plan(NamedTuple):
    """The plan of a run on a target.

    Attributes:
      target: the machine.
      mesh: the number of devices on the axes "data" and "fsdp".
      parameters: number of parameters of the run.
      train: the call of the train step; None if the compiler found that it does not fit.
      sampler: the call of the sampler; None if the network draws no samples, or without a train
        step.
      problem: why the run does not fit, and what to change; "" if it fits.
    """

    target: Target
    mesh: dict[str, int]
    parameters: int
    train: Call | None
    sampler: Call | None
    problem: str


def make_plan(config: Config, target: Target, facts: Facts, *, sampler: bool = True) -> Plan:
    """Compile a run for a machine.

    Args:
      config: the config of the run.
      target: the machine.
      facts: what the data are.
      sampler: whether to compile the sampler too.

    Raises:
      UserError: the config cannot be trained, also not on this number of devices.
    """
    if config.autoencoder.perceptual_weight:
        raise UserError(
            "autoencoder.perceptual_weight needs a classifier of the data, which a plan does not "
            "train; set it to 0 for the plan"
        )
    with compiled_for(target.platform):
        mesh = make_mesh(config, target.devices)
        codec = open_codec(config.data.codec, facts.image_shape) if config.data.codec else None
        parts = build_parts(config, *facts, mesh=mesh, codec=codec)
        image = jax.ShapeDtypeStruct(facts.image_shape, np.uint8)
        if codec is not None:
            image = latents.stored(codec)
        rows = {k: v for k, v in cond(config, facts, 1).items() if k not in ("label", "image")}
        if "view" in rows:
            rows["view"] = jax.ShapeDtypeStruct(rows["view"].shape, np.uint8)
        programs = Programs(config, parts, mesh, image, rows, target.memory)
        count = sum(leaf.size for leaf in jax.tree.leaves(programs.state.params))
        train, drawn, problem = None, None, ""
        fused = min(steps_per_call(config), config.train.num_steps)
        try:
            n = fused if fused > 1 else None
            step = programs.step(n)
            found = program.facts(step, programs.seconds, programs.trace(n), mesh.size)
            train = Call(config.train.batch_size * fused, fused, found)
            memory.check_fits(found.memory, target.memory, config, mesh.size)
        except UserError as error:
            problem = str(error)
        if sampler and parts.sampler_of and train:
            drawn = sampler_call(config, mesh, facts, codec)
    return Plan(target, dict(mesh.shape), count, train, drawn, problem)


def sampler_call(config: Config, mesh: Mesh, facts: Facts, codec: Codec | None) -> Call:
    """Compile the sampler of a config for a chunk of images; latents are not decoded."""
    shape = facts.image_shape if codec is None else codec.latent_shape
    model = build.model(config.model, shape, facts.num_classes)
    process = build.make_chain(config).initial()
    n = -(-config.sample.chunk_size // mesh.size) * mesh.size
    draw, timesteps = chain_sample_fn(config, process, model, shape), grid(config.sample, process)

    def sample(params: Any, x_T: Any, conditioning: Any) -> Any:
        key = jax.random.key(0)
        return draw(process, timesteps, params, key, n, conditioning, x_T=x_T)

    over_batch, everywhere = sharding.over_batch(mesh), sharding.replicated(mesh)

    def placed(leaf: Any, place: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    params = jax.eval_shape(model.init, jax.random.key(0))
    rows = (jax.ShapeDtypeStruct((n, *shape), jnp.float32), cond(config, facts, n) or None)
    arguments = (
        jax.tree.map(lambda leaf: placed(leaf, everywhere), params),
        *jax.tree.map(lambda leaf: placed(leaf, over_batch), rows),
    )
    options = compiler.options(compiler.of_network(params))
    start = time.perf_counter()
    function = jax.jit(sample, out_shardings=over_batch, compiler_options=options)
    traced = function.trace(*arguments)
    compiled = traced.lower().compile()
    found = program.facts(compiled, time.perf_counter() - start, traced, mesh.size)
    return Call(n, len(timesteps) - 1, found)


def cond(config: Config, facts: Facts, n: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of the conditioning of n images."""
    width = text_encoder.WIDTH
    every = {
        "label": ((n,), jnp.int32),
        "embedding": ((n, width), jnp.float32),
        "context": ((n, TOKENS, width), jnp.float32),
        "context_mask": ((n, TOKENS), jnp.bool_),
        "image": ((n, *facts.image_shape), jnp.float32),
        "view": ((n, *facts.image_shape), jnp.float32),
        "pose": ((n, 2, 4, 4), jnp.float32),
        "focal": ((n, 2), jnp.float32),
        "centre": ((n, 2, 2), jnp.float32),
    }
    return {name: jax.ShapeDtypeStruct(*every[name]) for name in cond_names(config)}


def seconds_of(call: Call, device: Device, dtype: str) -> tuple[float, float]:
    """Return the least and the most seconds that a call may take, by the assumptions.

    Args:
      call: the compiled call.
      device: a device of the target.
      dtype: the dtype of the computation, a key of `device.flops`.
    """
    p = call.program

    def busy(shares: Shares) -> float:
        rate, bandwidth = shares.compute * device.flops[dtype], shares.bandwidth * device.bandwidth
        return max(p.flops / rate, p.bytes / bandwidth)

    return busy(MOST), busy(LEAST) + p.message_bytes / (LINK * device.link)


def largest_batch(
    config: Config, target: Target, facts: Facts, report: Callable[[str], None]
) -> int:
    """Return the largest train.batch_size that fits, by bisection; 0 if none does.

    Args:
      config: the config of the run.
      target: the machine.
      facts: what the data are.
      report: receives a line after each compilation.
    """
    mesh = make_mesh(config, target.devices)
    unit = mesh.size * config.train.accumulate

    def fits(units: int) -> bool:
        train = dataclasses.replace(config.train, batch_size=units * unit)
        larger = dataclasses.replace(config, train=train)
        plan = make_plan(larger, target, facts, sampler=False)
        report(f"batch {units * unit}: {'does not fit' if plan.problem else 'fits'}")
        return not plan.problem

    return unit * largest(fits, max(1, config.train.batch_size // unit))


def largest(fits: Callable[[int], bool], start: int) -> int:
    """Return a number n that fits, while n + max(1, n / 8) does not; 0 if 1 does not fit.

    Args:
      fits: whether a number fits; if it does, so does every smaller one.
      start: the first number to try, at least 1.
    """
    low, high = 0, start
    while fits(high):
        low, high = high, 2 * high
    while high - low > max(1, low // 8):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
