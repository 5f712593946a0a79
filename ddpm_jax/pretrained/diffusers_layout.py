"""The layout that all of diffusers' networks share: their folder, and the names of their layers.

    folder/config.json                            the options
    folder/diffusion_pytorch_model.safetensors    the weights; .bin is read too, without its code

The levels of the upsampling half are counted from the bottom there, and from the top here.
"""

import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ddpm_jax.errors import UserError
from ddpm_jax.pretrained import torch_weights
from ddpm_jax.pretrained.torch_weights import Place, State
from ddpm_jax.runtime.files import replacing
from ddpm_jax.types import Params

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
RESIDUAL = {  # our layer -> theirs, inside a block
    "norm_1": "norm1",
    "conv_1": "conv1",
    "dense": "time_emb_proj",
    "norm_2": "norm2",
    "conv_2": "conv2",
    "shortcut": "conv_shortcut",
}
ATTENTION = {
    "norm": "group_norm",
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "out": "to_out.0",
}
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
ENDS = {  # our layer -> theirs, outside of the blocks
    "conv_in": "conv_in",
    "conv_out": "conv_out",
    "norm_out": "conv_norm_out",
    "time_1": "time_embedding.linear_1",
    "time_2": "time_embedding.linear_2",
    "label": "class_embedding",
    "quant": "quant_conv",
    "post_quant": "post_quant_conv",
}


def read_options(folder: str | os.PathLike, class_name: str) -> dict[str, Any]:
    """Read the options of a network.

    Args:
      folder: the folder of the network.
      class_name: the class that the file must name.

    Raises:
      UserError: the file cannot be read, or it names another class.
    """
    path = pathlib.Path(folder) / "config.json"
    options = read_json(path)
    found = options.get("_class_name")
    if found != class_name:
        raise UserError(f"{path}: _class_name is {found!r}; only {class_name!r} can be read here")
    return options


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
      UserError: the file cannot be read, or it holds something else.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold an object with names, found {type(found).__name__}")
    return found


def refuse(path: str | os.PathLike, name: str, value: Any, allowed: str) -> UserError:
    """Return the error for an option that we cannot represent.

    Args:
      path: the file.
      name, value: the option.
      allowed: what can be represented, such as "only 'silu' can".
    """
    return UserError(f"{path}: {name} = {value!r} cannot be represented; {allowed}")


def read_state(folder: str | os.PathLike) -> tuple[State, pathlib.Path]:
    """Read the weights of a folder, with the new names of old attention layers, and their file.

    Raises:
      UserError: there is no file of weights, or it cannot be read.
    """
    found = [path for name in WEIGHTS if (path := pathlib.Path(folder) / name).exists()]
    if not found:
        raise UserError(f"{folder} has no weights; it must contain {' or '.join(WEIGHTS)}")
    state = torch_weights.read(found[0])
    return {_modern(name): value for name, value in state.items()}, found[0]


def write(folder: str | os.PathLike, options: Mapping[str, Any], state: State) -> None:
    """Write the options and the weights of a network; the folder is created.

    Raises:
      UserError: the package safetensors is not installed.
    """
    folder = pathlib.Path(folder)
    torch_weights.write(folder / WEIGHTS[0], state)
    write_json(folder / "config.json", options)


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n")


def pairs(params: Params, levels: int, prefix: str = "") -> Iterator[tuple[Place, str]]:
    """Yield the place of each weight of a network, and diffusers' name of the weight.

    Args:
      params: the parameters of the U-Net, or of one half of an autoencoder; only the names count.
      levels: number of levels.
      prefix: comes before diffusers' names of all layers but the 1x1 convolutions of the latents.
    """
    for module, content in params.items():
        theirs, layers = _module(module, levels)
        theirs = theirs if module in ("quant", "post_quant") else prefix + theirs
        if layers is None:
            for leaf in content:
                yield (module, leaf), f"{theirs}.{_leaf(leaf)}"
            continue
        for layer, leaves in content.items():
            for leaf in leaves:
                yield (module, layer, leaf), f"{theirs}.{layers[layer]}.{_leaf(leaf)}"


def _module(module: str, levels: int) -> tuple[str, Mapping[str, str] | None]:
    """Return diffusers' name of one of our modules, and those of its layers; None for a layer."""
    if module in ENDS:
        return ENDS[module], None
    way, *rest = module.removesuffix("_attention").split("_")
    attends = module.endswith("_attention")
    kind, layers = ("attentions", ATTENTION) if attends else ("resnets", RESIDUAL)
    if way == "middle":
        return f"mid_block.{kind}.{rest[0]}", layers
    level = int(rest[0]) if way == "down" else levels - 1 - int(rest[0])
    resizer = f"{way}_blocks.{level}.{way}samplers.0"
    if rest[1] == "conv":
        return f"{resizer}.conv", None
    if rest[1] == "resize":
        return resizer, RESIDUAL
    return f"{way}_blocks.{level}.{kind}.{rest[1]}", layers


def _leaf(name: str) -> str:
    return "bias" if name == "bias" else "weight"


def _modern(name: str) -> str:
    """Return the name that a weight of the attention has in new versions of diffusers."""
    old = "|".join(OLD_ATTENTION)
    return re.sub(
        rf"(\.attentions\.\d+\.)({old})\.", lambda m: f"{m[1]}{OLD_ATTENTION[m[2]]}.", name
    )
