"""Predictor-corrector sampling: each ancestral step follows Langevin steps at the same t.

  g = -ε̂(x, t)/sigma_t                                the score of x_t
  x <- x + ε g + √(2ε) z,  ε = 2 α (r ‖z‖/‖g‖)²,  α = ᾱ_t/ᾱ_s       corrector, n times at t
  x_s = ancestral step from t                          predictor
                                        (Song et al. 2021, score SDE, algorithms 3 and 5)

Deviates from algorithm 3, which predicts first and then corrects. Here the corrector runs first, at
t, as in the authors' code. It then never needs the score of clean data.

Deviates from the authors' code, which averages the norms over the batch. Here each image has its
own step size, so an image does not depend on the rest of the batch. An image with a score of 0 has
no step size, and is not corrected.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddpm_jax.errors import UserError
from ddpm_jax.process import GaussianProcess, alpha_sigma, expand, jump
from ddpm_jax.randomness import fold_in
from ddpm_jax.samplers.ancestral import AncestralState, ancestral
from ddpm_jax.samplers.base import Noise, Sampler, with_options
from ddpm_jax.types import Array, DenoiseFn, Prediction, PRNGKey

# A score with this norm or less counts as 0. Above it, the step and its derivative fit in float32.
ZERO = 1e-10


def predictor_corrector(
    process: GaussianProcess,
    variance: str = "fixed_large",
    snr: float = 0.16,
    num_corrections: int = 1,
) -> Sampler:
    """Build the predictor-corrector sampler; num_corrections + 1 evaluations a step.

    Limits: num_corrections = 0 is ancestral sampling. The last step returns x̂_0 of the corrected
    x_t. If all data are one point, the sampler returns it exactly.

    Args:
      process: the chain.
      variance: the variance of the ancestral step, as in `ancestral`.
      snr: r > 0, the size of the Langevin steps relative to the noise; 0.16 in the paper.
      num_corrections: n >= 0, the number of Langevin steps before each ancestral step.

    Raises:
      UserError: unknown variance; snr or num_corrections is out of its range.
    """
    if not snr > 0.0:
        raise UserError(f"snr must be > 0, found {snr}")
    if num_corrections < 0:
        raise UserError(f"num_corrections must be >= 0, found {num_corrections}")

    options = dict(snr=float(snr), num_corrections=int(num_corrections))
    predictor = ancestral(process, variance).advance
    advance = with_options(_advance, predictor=predictor, **options)
    return Sampler(process, AncestralState, advance)


def _advance(
    process: GaussianProcess,
    denoise_fn: DenoiseFn,
    noise: Noise,
    key: PRNGKey,
    state: AncestralState,
    t: Array,
    s: Array,
    *,
    predictor: Callable[..., tuple[AncestralState, Prediction]],
    snr: float,
    num_corrections: int,
) -> tuple[AncestralState, Prediction]:
    _, sigma_t = alpha_sigma(process, t, state.x)
    alpha = jnp.square(jump(process, t, s)[0])

    def correct(i: Array, x: Array) -> Array:
        score = -denoise_fn(x, t).eps / sigma_t
        z = noise(fold_in(key, i + 1), t, x.shape)
        norm = _norm(score)
        # The inner `where` keeps NaN out of the gradient: 0 times the derivative of z/0.
        ratio = jnp.where(norm > ZERO, _norm(z) / jnp.where(norm > ZERO, norm, 1.0), 0.0)
        size = 2.0 * alpha * jnp.square(snr * ratio)
        size = expand(size, x)
        return x + size * score + _root(2.0 * size) * z

    x = jax.lax.fori_loop(0, num_corrections, correct, state.x)
    return predictor(process, denoise_fn, noise, fold_in(key, 0), AncestralState(x), t, s)


def _norm(x: Array) -> Array:
    """Return the Euclidean norm of each image, [B]."""
    return _root(jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim))))


@jax.custom_jvp
def _root(x: Array) -> Array:
    """Return √x, with a derivative of 0 instead of inf at 0."""
    return jnp.sqrt(x)


@_root.defjvp
def _root_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (x_dot,) = primals, tangents
    root = _root(x)
    slope = jnp.where(x > 0.0, 0.5 / jnp.where(x > 0.0, root, 1.0), 0.0)
    return root, slope * x_dot
