"""Blocks that recompute their activations in the backward pass (Chen et al. 2016).

The forward pass keeps the inputs of each block and, optionally, the outputs of its convolutions and
matrix products. These products take nearly all of the time. The other operations (norms, swish,
dropout) take nearly all of the memory.
"""

import flax.linen as nn
import jax

from ddpm_jax.errors import unknown
from ddpm_jax.models.attention import AttentionBlock
from ddpm_jax.models.blocks import ResidualBlock

PRODUCTS = {jax.lax.conv_general_dilated_p, jax.lax.dot_general_p}
POLICIES = {
    "nothing": None,
    "convolutions": lambda primitive, *_, **__: primitive in PRODUCTS,
}


def recomputed(
    remat: bool, keep: str, attention: type[nn.Module] = AttentionBlock
) -> tuple[type[nn.Module], type[nn.Module]]:
    """Return the classes of the residual and the attention block, recomputing if `remat`.

    Args:
      remat: whether the blocks recompute their activations in the backward pass.
      keep: which outputs inside a block are kept nevertheless: "nothing" or "convolutions" (and
        matrix products).
      attention: the class of the attention block.

    Raises:
      UserError: `keep` is another name.
    """
    if keep not in POLICIES:
        raise unknown("model.remat_keep", keep, POLICIES)
    if not remat:
        return ResidualBlock, attention
    policy = POLICIES[keep]
    residual = nn.remat(ResidualBlock, static_argnums=(3,), policy=policy)  # 3: train, after self
    return residual, nn.remat(attention, policy=policy)
