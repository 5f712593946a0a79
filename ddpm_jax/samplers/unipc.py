"""UniPC: a predictor of order p, and a corrector that raises the order to p + 1.

  UniP-p:  x̃_s = (sigma_s/sigma_t) x_t + alpha_s ∫_0^h e^{τ-h} P(τ) dτ
           P the polynomial through x̂_0 at t and the p - 1 timesteps before it
  UniC-p:  x_s, the same with P through x̂_0(x̃_s, s) as well
                                        (Zhao et al. 2023, algorithms 1 and 2, data prediction)

A step needs one evaluation: x̂_0(x̃_s, s) corrects the step to s and then predicts the step from s.

The paper writes the integral as sums of differences divided by B(h). Their coefficients solve a
Vandermonde system, and B cancels. B matters only in UniP-2 and UniC-1, where the paper sets the one
coefficient to 1/2. There B is B_2(h) = e^h - 1, so that the difference gets half of the gain
alpha_s (1 - e^{-h}).
"""

from typing import NamedTuple

import jax.numpy as jnp

from ddpm_jax.errors import UserError
from ddpm_jax.process import GaussianProcess
from ddpm_jax.samplers.base import Noise, Sampler, with_options
from ddpm_jax.samplers.dpm_solver import combine
from ddpm_jax.samplers.ode import Interval, interval, weights
from ddpm_jax.types import Array, DenoiseFn, Prediction, PRNGKey


class UniPCState(NamedTuple):
    """The predicted sample at t, and what the corrector needs; past predictions latest first.

    Attributes:
      x: [B, ...] float32, the predicted sample at the timestep t that the sampler has reached.
      x_before: [B, ...], the corrected sample at the timestep before t.
      x_0: p predictions at the timesteps before t, each [B, ...].
      h: length in λ of the step that followed each prediction, p scalars; inf if there is no
        prediction.
      way: the coefficients of the step that led to t.
    """

    x: Array
    x_before: Array
    x_0: tuple[Array, ...]
    h: tuple[Array, ...]
    way: Interval


def unipc(process: GaussianProcess, order: int = 2) -> Sampler:
    """Build UniPC-p with B_2 (Zhao et al. 2023); one evaluation a step, order p + 1.

    The first steps have lower orders, because they have few past predictions. The step to s = 0
    has order 1 and is not corrected. At zero terminal SNR the same holds for the step from t = T.

    Limits: a chain of one step is `ddim` at eta = 0. The last step returns x̂_0. If all data are
    one point, the sampler returns it exactly.

    Args:
      process: the chain.
      order: p, the order of the predictor: 2 or 3.

    Raises:
      UserError: order is not 2 or 3.
    """
    if order not in (2, 3):
        raise UserError(f"order must be 2 or 3, found {order}")

    return Sampler(process, with_options(_init, order=order), with_options(_advance, order=order))


def _init(x_T: Array, *, order: int) -> UniPCState:
    zeros, inf, zero = jnp.zeros_like(x_T), jnp.float32(jnp.inf), jnp.float32(0)
    no_way = Interval(h=inf, decay=zero, gain=zero, fraction=zero)
    return UniPCState(x_T, zeros, (zeros,) * order, (inf,) * order, no_way)


def _advance(
    process: GaussianProcess,
    denoise_fn: DenoiseFn,
    noise: Noise,
    key: PRNGKey,
    state: UniPCState,
    t: Array,
    s: Array,
    *,
    order: int,
) -> tuple[UniPCState, Prediction]:
    prediction = denoise_fn(state.x, t)
    x_0 = (prediction.x_0, *state.x_0)
    corrected = state.way.flow(state.x_before, _corrected_x_0(x_0, state.h))
    x_t = jnp.where(jnp.isfinite(state.way.h), corrected, state.x)
    way = interval(process, t, s)
    x_s = way.flow(x_t, combine(way.h, x_0[0], x_0[1:order], state.h[: order - 1]))
    h = (way.h, *state.h)[:order]
    return UniPCState(x_s, x_t, x_0[:order], h, way), prediction


def _corrected_x_0(x_0: tuple[Array, ...], past_h: tuple[Array, ...]) -> Array:
    """Return the constant x_0 that gives the same step as the polynomial through all of x_0.

    Args:
      x_0: p + 1 predictions, at t and at the p timesteps before t, each [B, ...], latest first.
      past_h: lengths in λ of the p steps between them, scalars. The first is the step to correct.
    """
    # 1 instead of inf: otherwise the weights of unused predictions would make gradients NaN
    h = jnp.where(jnp.isfinite(past_h[0]), past_h[0], 1.0)
    nodes = [jnp.ones_like(h), jnp.zeros_like(h)]
    result = 0.5 * (x_0[0] + x_0[1])
    for n in range(2, len(x_0)):
        is_used = jnp.isfinite(past_h[n - 1])
        nodes.append(nodes[-1] - jnp.where(is_used, past_h[n - 1], 1.0) / h)
        w = weights(h, nodes)
        value = sum(w_j * x for w_j, x in zip(w, x_0[: n + 1], strict=True))
        result = jnp.where(is_used, value, result)
    return result
