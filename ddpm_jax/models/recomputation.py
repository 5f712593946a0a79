"""Blocks that compute their activations again in the backward pass (Chen et al. 2016).

Kept are the inputs of each block and, by choice, the outputs of its convolutions and matrix
products: these take nearly all of the time, and the rest (norms, swish, dropout) nearly all of the
memory.
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


def recomputed(remat: bool, keep: str) -> tuple[type[nn.Module], type[nn.Module]]:
    """Return the residual and the attention block, recomputed if `remat`.

    Args:
      remat: whether they are.
      keep: what of them is kept all the same: "nothing" or "convolutions".

    Raises:
      UserError: another `keep`.
    """
    if keep not in POLICIES:
        raise unknown("model.remat_keep", keep, POLICIES)
    if not remat:
        return ResidualBlock, AttentionBlock
    policy = POLICIES[keep]
    residual = nn.remat(ResidualBlock, static_argnums=(3,), policy=policy)  # 3 counts self: train
    return residual, nn.remat(AttentionBlock, policy=policy)
