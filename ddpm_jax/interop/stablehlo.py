"""A whole sampler as a StableHLO program that JAX calls without this library.

    folder/sampler.bin            the program, serialised by `jax.export`
    folder/weights.safetensors    its weights, unless they are inside the program
    folder/sampler.json           its arguments, its platforms, and the jax that wrote it

The program has these arguments and returns uint8 images [n, H, W, C]; n may be any number.

    weights     {name: array}, the content of weights.safetensors; absent if they are inside
    key         uint32 [2], the data of a JAX key: jax.random.key_data(jax.random.key(0))
    index       int32 [n], the numbers of the images, such as 0..n-1
    label ...   what the network is conditioned on, by name (`models.inputs`)
    guidance    float32, the weight w of classifier-free guidance; 0 is off

Image i depends on the key and its number only: it is the image that `load` gives for the same key.

A later jax loads the program, for six months at least (jax.export's promise). An earlier jax does
not load it, so write it with the oldest jax that will call it.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from ddpm_jax import pixels
from ddpm_jax.build import latents
from ddpm_jax.build.guidance import guidable
from ddpm_jax.build.overrides import override
from ddpm_jax.build.sampling import grid, walk_fn
from ddpm_jax.errors import UserError, look_up
from ddpm_jax.pretrained import torch_weights
from ddpm_jax.runs.open import Run, open_run
from ddpm_jax.runtime.files import absolute
from ddpm_jax.types import Array

PROGRAM, WEIGHTS, FACTS = "sampler.bin", "weights.safetensors", "sampler.json"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
PLACES = {"beside": True, "inside": False}  # of the weights -> whether they have their own file

Tree = Any  # nested dicts of arrays


def to_stablehlo(
    run: Run | str | os.PathLike,
    path: str | os.PathLike,
    *,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    weights: str = "beside",
    **sample: Any,
) -> pathlib.Path:
    """Write a sampler that needs no code of this library; return its folder.

    to_stablehlo("runs/digits", "digits_sampler", sampler="dpm_solver_pp_2m", num_steps=20)

    Args:
      run: an open run (`open_run`), or its work directory.
      path: the folder to write; it must not exist, or be empty.
      platforms: where the program can run: some of cpu, cuda, rocm, tpu.
      weights: "beside" writes the weights to a file of their own, "inside" makes them part of the
        program.
      **sample: fields of `config.sample` to replace, such as num_steps=20.

    Raises:
      UserError: the package flatbuffers or safetensors is missing; the folder exists or cannot be
        written; a platform or a field is unknown; the sampler does not fit the run.
    """
    beside, platforms = look_up(PLACES, "place of the weights", weights), tuple(platforms)
    for name in platforms:
        if name not in PLATFORMS:
            raise UserError(f"unknown platform {name!r}; allowed: {', '.join(PLATFORMS)}")
    if not platforms or len(set(platforms)) < len(platforms):
        raise UserError(f"platforms must be different names, at least one; found {platforms}")
    _check_packages(beside)
    folder = check_new(path)
    run = run if isinstance(run, Run) else open_run(run)
    run = run._replace(config=override(run.config, sample))
    arrays = _flat(_weights(run))
    program = _program(run, arrays, beside, platforms)
    facts = _facts(run, program, platforms, weights)
    part = folder.with_name(f".{uuid.uuid4().hex}-{folder.name}")
    try:
        part.mkdir(parents=True)
        (part / PROGRAM).write_bytes(program.serialize())
        if beside:
            torch_weights.write(part / WEIGHTS, arrays)
        (part / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
        os.replace(part, folder)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); choose another") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _check_packages(beside: bool) -> None:
    """Raise `UserError` if a package is missing; `jax.export` serialises with flatbuffers."""
    for name in ("flatbuffers", "safetensors") if beside else ("flatbuffers",):
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"a sampler is exported with the package {name}, which is not installed: "
                "pip install 'ddpm_jax[export]'"
            )


def check_new(path: str | os.PathLike) -> pathlib.Path:
    """Return the absolute path of a folder that does not exist, or is empty.

    Raises:
      UserError: something else is there.
    """
    folder = absolute(path)
    if folder.is_dir() and not any(folder.iterdir()):
        return folder
    if os.path.lexists(folder):
        raise UserError(f"{path} exists; choose a folder that does not, or remove it")
    return folder


def _weights(run: Run) -> Tree:
    """Return all weights of the sampler: those of the network and of the codec's decoder."""
    if run.codec is None:
        return {"network": run.params}
    return {"network": run.params, "codec": {"decoder": run.codec.params["decoder"]}}


def _program(
    run: Run, arrays: dict[str, np.ndarray], beside: bool, platforms: tuple[str, ...]
) -> export.Exported:
    """Trace the sampler for all platforms, with a symbolic number of images."""
    draw = _draw_fn(run)

    def draw_beside(weights, key, index, **cond):
        return draw(_nested(weights), key, index, **cond)

    def draw_inside(key, index, **cond):
        return draw(_nested(arrays), key, index, **cond)

    scope = export.SymbolicScope()
    shapes = {
        name: jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=scope), dtype)
        for name, (shape, dtype) in _arguments(run).items()
    }
    given = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arrays)
    first = (given,) if beside else ()
    function = jax.jit(draw_beside if beside else draw_inside)
    key, index = shapes.pop("key"), shapes.pop("index")
    return export.export(function, platforms=platforms)(*first, key, index, **shapes)


def _draw_fn(run: Run) -> Callable[..., Array]:
    """Return draw(weights, key, index, *, guidance=None, **cond): uint8 images [n, H, W, C]."""
    off = {"guidance": 0.0, "guidance_interval": (), "guidance_rescale": 0.0}
    walk, plain = (
        walk_fn(config, run.process, run.model, run.shape)
        for config in (run.config, override(run.config, off))
    )

    def draw(weights: Tree, key: Array, index: Array, **cond: Array) -> Array:
        key = jax.random.wrap_key_data(key, impl="threefry2x32")
        guidance, network = cond.pop("guidance", None), weights["network"]

        def unguided() -> Array:
            return plain(network, key, index, cond or None)

        def guided() -> Array:
            return walk(network, key, index, cond, guidance)

        # one evaluation of the network in each step if the guidance is off, otherwise two
        x_0 = unguided() if guidance is None else jax.lax.cond(guidance == 0.0, unguided, guided)
        if run.codec is not None:
            x_0 = latents.decode(dataclasses.replace(run.codec, params=weights["codec"]), x_0)
        return pixels.rounded(x_0)

    return draw


def _arguments(run: Run) -> dict[str, tuple[str, Any]]:
    """Return the symbolic shape and the type of each argument after the weights."""
    model = run.config.model
    if model.name == "xunet":
        raise UserError(
            "a sampler of novel views (model.name=xunet) cannot be exported yet; draw with "
            "experiments.views"
        )
    found = {"key": ("2", jnp.uint32), "index": ("n", jnp.int32)}
    if model.class_conditional:
        found["label"] = "n", jnp.int32
    if model.embedding_dim:
        found["embedding"] = f"n, {model.embedding_dim}", jnp.float32
    if model.context_dim:
        found["context"] = f"n, L, {model.context_dim}", jnp.float32
        found["context_mask"] = "n, L", jnp.bool_
    if model.super_resolution:
        found["image"] = ", ".join(["n", *map(str, run.shape)]), jnp.float32
    if guidable(model) and run.config.loss.p_uncond:
        found["guidance"] = "", jnp.float32
    return found


def _facts(
    run: Run, program: export.Exported, platforms: tuple[str, ...], weights: str
) -> dict[str, Any]:
    """Return what sampler.json says."""
    arguments = {
        name: {"shape": shape.split(", ") if shape else [], "dtype": jnp.dtype(dtype).name}
        for name, (shape, dtype) in _arguments(run).items()
    }
    return {
        "jax": jax.__version__,
        "calling_convention_version": program.calling_convention_version,
        "platforms": platforms,
        "weights": WEIGHTS if weights == "beside" else "inside the program",
        "arguments": arguments,
        "result": {"shape": ["n", *map(str, run.facts.image_shape)], "dtype": "uint8"},
        "class_names": run.facts.class_names,
        "step": run.step,
        "num_network_steps": len(grid(run.config.sample, run.process)) - 1,
        "sample": dataclasses.asdict(run.config.sample),
    }


def _flat(tree: Tree) -> dict[str, np.ndarray]:
    """Return {"network/conv_in/kernel": array}, the weights by their place."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.ascontiguousarray(leaf)
        for path, leaf in leaves
    }


def _nested(arrays: Mapping[str, Any]) -> Tree:
    """Return the tree of a flat mapping, the inverse of `_flat`."""
    tree: Tree = {}
    for place, leaf in arrays.items():
        *parents, name = place.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[name] = leaf
    return tree
