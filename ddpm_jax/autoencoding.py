"""The training loss of an autoencoder, per image (Rombach et al. 2022, eq. 25; Esser et al. 2021).

    L = reconstruction(x, x̂) + kl_weight KL / N + λ_p |f(x) - f(x̂)|² + λ (-D(x̂)) + hinge(D)

The reconstruction error is a mean over the N = H W C values of an image, and KL a sum over its
latents. So kl_weight means what it means in the papers, where both are sums. f are features and D
is a discriminator of patches; both terms are means over their outputs. λ follows the gradients, so
that at weight 1 both terms pull equally hard at the last layer
(Esser et al. 2021, eq. 7; 1e-4 is of the authors' code):

    λ = weight |∇ reconstruction| / (|∇ D(x̂)| + 1e-4),   ∇ with respect to the last layer
"""

import math

import jax
import jax.numpy as jnp

from ddpm_jax.types import Array, Params

MAX_RATIO = 1e4  # of the two gradients, as in the authors' code


def l1(x: Array, reconstructed: Array) -> Array:
    """Return the mean absolute error of each image: [B], for two arrays [B, ...] float."""
    return jnp.abs(x - reconstructed).mean(axis=tuple(range(1, x.ndim)))


def gaussian(x: Array, reconstructed: Array, log_variance: Array) -> Array:
    """Return the negative log-likelihood of each image under N(x̂, σ² I), in nats per value: [B].

    Args:
      x: [B, ...] float.
      reconstructed: [B, ...] float.
      log_variance: log σ², a scalar that is learned.
    """
    square = jnp.square(x - reconstructed).mean(axis=tuple(range(1, x.ndim)))
    return 0.5 * (square * jnp.exp(-log_variance) + log_variance + math.log(2.0 * math.pi))


def hinge(real: Array, fake: Array) -> Array:
    """Return ½ (max(0, 1 - D(x)) + max(0, 1 + D(x̂))), the discriminator's loss of each image: [B].

    Args:
      real: [B, ...], the discriminator's output for images.
      fake: [B, ...], the same for reconstructions.
    """
    loss = 0.5 * (jnp.maximum(1.0 - real, 0.0) + jnp.maximum(1.0 + fake, 0.0))
    return loss.mean(axis=tuple(range(1, real.ndim)))


def adaptive_weight(reconstruction: Params, adversarial: Params) -> Array:
    """Return |∇ reconstruction| / (|∇ adversarial| + 1e-4), at most 1e4, without a gradient.

    Args:
      reconstruction: the gradient of the reconstruction's loss with respect to the last layer.
      adversarial: the gradient of the adversarial term.
    """
    ratio = _norm(reconstruction) / (_norm(adversarial) + 1e-4)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, MAX_RATIO))


def _norm(tree: Params) -> Array:
    return jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree)))
