"""Side by side with diffusers' UNet2DModel set up as Ho et al.'s network, by copying its weights.

Needs the `peers` extra.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models import UNet

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

pytestmark = [pytest.mark.slow, pytest.mark.quick_to_compile]

PARTS = {  # the name in diffusers -> our name, inside a block
    "norm1": "norm_1",
    "conv1": "conv_1",
    "time_emb_proj": "dense",
    "norm2": "norm_2",
    "conv2": "conv_2",
    "conv_shortcut": "shortcut",
    "group_norm": "norm",
    "to_q": "query",
    "to_k": "key",
    "to_v": "value",
    "to_out.0": "out",
}
ENDS = {
    "conv_in": "conv_in",
    "time_embedding.linear_1": "time_1",
    "time_embedding.linear_2": "time_2",
    "conv_norm_out": "norm_out",
    "conv_out": "conv_out",
}


def our_path(name: str, num_levels: int) -> tuple[str, ...]:
    """Where our tree has a layer of diffusers, such as "up_blocks.0.resnets.1.conv1"."""
    if name in ENDS:
        return (ENDS[name],)
    block, rest = name.split(".", 1)
    if block == "mid_block":
        kind, i, part = rest.split(".", 2)
        name = "middle_0_attention" if kind == "attentions" else f"middle_{i}"
        return name, PARTS[part]
    level, kind, i, part = rest.split(".", 3)
    way = block.removesuffix("_blocks")
    level = num_levels - 1 - int(level) if way == "up" else level  # counted from the bottom
    if kind in ("downsamplers", "upsamplers"):
        return (f"{way}_{level}_conv",)
    return f"{way}_{level}_{i}" + "_attention" * (kind == "attentions"), PARTS[part]


def our_params(state: dict, num_levels: int, num_heads: int) -> dict:
    """Their state dictionary as our parameters."""
    tree: dict = {}
    for full_name, tensor in state.items():
        name, kind = full_name.rsplit(".", 1)
        value = tensor.numpy()
        path = our_path(name, num_levels)
        if kind == "weight" and value.ndim == 1:
            kind = "scale"
        elif kind == "weight":
            kind = "kernel"
            value = np.moveaxis(value, (0, 1), (-1, -2))  # torch has [out, in, ...]
            if path[-1] == "shortcut":
                value = value[0, 0]  # a 1x1 convolution there, a dense layer here
        if path[-1] in ("query", "key", "value"):
            value = value.reshape(*value.shape[:-1], num_heads, -1)
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[kind] = value
    return tree


@pytest.mark.parametrize("multipliers, num_heads", [((1, 2), 1), ((1, 1, 1), 2)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_network_is_that_of_diffusers(multipliers, num_heads):
    levels, channels, height, width = len(multipliers), 8, 8, 16
    torch.manual_seed(0)
    attends = [height >> level == 4 for level in range(levels)]
    widths = tuple(channels * m for m in multipliers)
    theirs = diffusers.UNet2DModel(
        sample_size=(height, width),
        block_out_channels=widths,
        layers_per_block=2,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]),
        attention_head_dim=channels // num_heads if num_heads > 1 else None,
        norm_num_groups=4,
        norm_eps=1e-6,
        # as in their conversion of Ho et al.'s weights
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # norms and biases too, which start at 1 and 0
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours = UNet(
        channels=channels,
        channel_multipliers=multipliers,
        attention_resolutions=(4,),
        num_heads=num_heads,
        num_groups=4,
    )
    params = our_params(theirs.state_dict(), levels, num_heads)
    x = np.random.default_rng(0).normal(size=(3, height, width, 3)).astype(np.float32)
    t = np.array([0, 7, 999])
    shapes = jax.eval_shape(ours.init, jax.random.key(0), x, jnp.asarray(t))["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
    output = jax.jit(ours.apply)({"params": params}, x, t)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(np.moveaxis(x, -1, 1)), torch.from_numpy(t)).sample
    expected = np.moveaxis(expected.numpy(), 1, -1)
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(output, expected, atol=1e-4)
