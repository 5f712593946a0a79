"""The U-Net and the classifier of OpenAI's improved-diffusion and guided-diffusion, as ours.

    ours               their module              ours, in a block    theirs
    conv_in            input_blocks.0.0          norm_1, conv_1      in_layers.0, in_layers.2
    down_0_0           input_blocks.1.0          dense               emb_layers.1
    middle_0           middle_block.0            norm_2, conv_2      out_layers.0, out_layers.3
    up_3_0             output_blocks.0.0         shortcut            skip_connection
    ..._attention      the module after it       query, key, value   parts of qkv

Their blocks are counted through all levels. An attention or a resizing layer is a further part of
the block that it follows. Four things differ: one convolution makes q, k and v there; its
channels are in one of two orders; the time is embedded as [cos, sin] there; and the positions of
the classifier's pool are [C, HW] there.
"""

import os
import re
from collections.abc import Iterator, Mapping

import numpy as np

from ddpm_jax.config import ModelConfig
from ddpm_jax.errors import UserError
from ddpm_jax.pretrained import torch_weights
from ddpm_jax.pretrained.torch_weights import Place, State
from ddpm_jax.types import Params

RESIDUAL = {
    "norm_1": "in_layers.0",
    "conv_1": "in_layers.2",
    "dense": "emb_layers.1",
    "norm_2": "out_layers.0",
    "conv_2": "out_layers.3",
    "shortcut": "skip_connection",
}
PARTS = ("query", "key", "value")  # of their qkv, in this order
ATTENTION = {"norm": "norm", "out": "proj_out"} | {part: f"qkv.{part}" for part in PARTS}
POOL = {"position": "positional_embedding"} | {part: f"qkv_proj.{part}" for part in PARTS}
ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_1": "time_embed.0",
    "time_2": "time_embed.2",
    "label": "label_emb",
    "norm_out": "out.0",
    "conv_out": "out.2",
}


def read_params(
    file: str | os.PathLike, abstract: Params, model: ModelConfig, *, legacy: bool
) -> Params:
    """Read the weights of a file of `torch.save` as our parameters, float32.

    Args:
      file: the file, which holds a state_dict.
      abstract: the shapes of our parameters.
      model: the section `model` of the config.
      legacy: the order of q, k and v: True is QKVAttentionLegacy, where each head has its own.

    Raises:
      UserError: the file cannot be read; a weight is missing, left over, or of another shape.
    """
    theirs = torch_weights.read(file)
    state, pairs = _with_our_order(theirs, model, legacy), list(_pairs(abstract, model))
    for _, name in pairs:
        whole = re.sub(rf"\.({'|'.join(PARTS)})\.", ".", name)  # their name of q, k and v together
        if name not in state and whole in theirs:
            shape = list(theirs[whole].shape)
            raise UserError(f"{file}: {whole} has the shape {shape}, which is not [3 C, C]")
        if name not in state and whole != name:
            raise UserError(f"{file} has no weight {whole!r}, which this network needs")
    return torch_weights.to_params(abstract, pairs, state, file)


def _pairs(abstract: Params, model: ModelConfig) -> Iterator[tuple[Place, str]]:
    """Yield the place of each weight and its name; q, k and v have names of their own."""
    modules = _modules(abstract, model)
    for module, content in abstract.items():
        if module.endswith("_attention"):
            inside = ATTENTION
        else:
            inside = POOL if module == "pool" else RESIDUAL
        for layer, leaves in content.items():
            if not isinstance(leaves, Mapping):  # the module is a layer itself
                inner = inside[layer] if module == "pool" else _leaf(layer)
                yield (module, layer), f"{modules[module]}.{inner}"
                continue
            for leaf in leaves:
                yield (module, layer, leaf), f"{modules[module]}.{inside[layer]}.{_leaf(leaf)}"


def _modules(abstract: Params, model: ModelConfig) -> dict[str, str]:
    """Return their name of each module that our network may have."""
    logits = "out.2.c_proj" if model.pool == "attention" else "out.3"
    names = ENDS | {"pool": "out.2", "logits": logits}
    levels, count = len(model.channel_multipliers), 1
    for level in range(levels):
        for i in range(model.num_res_blocks):
            names[f"down_{level}_{i}"] = f"input_blocks.{count}.0"
            names[f"down_{level}_{i}_attention"] = f"input_blocks.{count}.1"
            count += 1
        names[f"down_{level}_conv"] = f"input_blocks.{count}.0.op"
        names[f"down_{level}_resize"] = f"input_blocks.{count}.0"
        count += 1
    names |= {
        "middle_0": "middle_block.0",
        "middle_0_attention": "middle_block.1",
        "middle_1": "middle_block.2",
    }
    count = 0
    for level in reversed(range(levels)):
        for i in range(model.num_res_blocks + 1):
            names[f"up_{level}_{i}"] = f"output_blocks.{count}.0"
            names[f"up_{level}_{i}_attention"] = f"output_blocks.{count}.1"
            count += 1
        last = f"output_blocks.{count - 1}.{1 + (f'up_{level}_0_attention' in abstract)}"
        names |= {f"up_{level}_conv": f"{last}.conv", f"up_{level}_resize": last}
    return names


def _leaf(name: str) -> str:
    return "bias" if name == "bias" else "weight"


def _with_our_order(state: State, model: ModelConfig, legacy: bool) -> State:
    """Return their weights with the axes and the parts of qkv in our order."""
    found: State = {}
    for name, value in state.items():
        module, _, leaf = name.rpartition(".")
        if module.endswith((".qkv", ".qkv_proj")) and value.ndim and len(value) % 3 == 0:
            # the pool has the new order always
            heads = _heads(model, len(value) // 3) if legacy and module.endswith(".qkv") else 1
            parts = value.reshape(heads, 3, -1, *value.shape[1:])
            for i, part in enumerate(PARTS):
                found[f"{module}.{part}.{leaf}"] = parts[:, i].reshape(-1, *value.shape[1:])
        elif name == "time_embed.0.weight" and value.ndim == 2:
            found[name] = np.roll(value, value.shape[1] // 2, axis=1)  # [cos, sin] to [sin, cos]
        elif leaf == "positional_embedding":
            found[name] = value.T
        else:
            found[name] = value
    return found


def _heads(model: ModelConfig, width: int) -> int:
    """Return the number of heads of an attention; 1 if it cannot be, which a shape then shows."""
    heads = width // model.head_dim if model.head_dim else model.num_heads
    return heads if heads and width % heads == 0 else 1
