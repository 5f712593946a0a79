"""UniPC: a predictor of order p and a corrector that raises it to p + 1, at one evaluation a step.

  UniP-p:  x̃_s = (sigma_s/sigma_t) x_t + alpha_s ∫_0^h e^{τ-h} P(τ) dτ
           P the polynomial through x̂_0 at t and the p - 1 timesteps before it
  UniC-p:  x_s, the same with P through x̂_0(x̃_s, s) as well
                                        (Zhao et al. 2023, algorithms 1 and 2, data prediction)

The paper writes the integral as sums of differences divided by B(h), with coefficients that solve
a Vandermonde system; B cancels, except where the one coefficient is set to 1/2 (UniP-2 and UniC-1):
there B is B_2(h) = e^h - 1, which makes 1/2 of the gain alpha_s (1 - e^{-h}).
The evaluation at x̃_s corrects the step to s and then predicts the step from s.
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
    """The predicted sample, and what corrects it; the past is latest first.

    Attributes:
      x: [B, ...] float32, predicted for the timestep t that the sampler has reached.
      x_before: [B, ...], the corrected sample at the timestep before.
      x_0: p predictions at the timesteps before t, each [B, ...].
      h: the p steps in λ that led from each of them to the next, scalars; inf where there is none.
      way: the step that led to t.
    """

    x: Array
    x_before: Array
    x_0: tuple[Array, ...]
    h: tuple[Array, ...]
    way: Interval


def unipc(process: GaussianProcess, order: int = 2) -> Sampler:
    """Build UniPC-p with B_2 (Zhao et al. 2023); one evaluation a step, order p + 1.

    The first steps have lower orders, while the past fills up. The step to s = 0 has order 1, and
    so has the one from t = T at zero terminal SNR; neither is corrected.

    Limits: a chain of one step is `ddim`'s at eta = 0; the last step returns x_0-hat; data that
    are one point are returned exactly.

    Args:
      process: the chain.
      order: p of the predictor, 2 or 3.

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
    """Return the constant that stands for the polynomial through x_0 at t and before.

    Args:
      x_0: p + 1 predictions, at t and the p timesteps before it, latest first.
      past_h: p steps in λ between them; the first of them is the step that is corrected.
    """
    # 1 in place of inf: the weights of what is not used must not make gradients NaN
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
