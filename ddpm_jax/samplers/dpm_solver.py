"""DPM-Solver++: exponential integrators of the probability-flow ODE, from predictions of x_0.

  x_s = (sigma_s/sigma_t) x_t + alpha_s (1 - e^{-h}) D,  h = λ_s - λ_t,  λ = ln(alpha/sigma)
  2M:  D = x̂_0(t) + h/(2 h_1) (x̂_0(t) - x̂_0(t_1)),       t_1 before t, h_1 = λ_t - λ_t1
  2S:  D = x̂_0(t) + 1/(2r) (x̂_0(u) - x̂_0(t)),            λ_u = λ_t + r h
                                (Lu et al. 2022, DPM-Solver++, algorithms 2 and 1)
  SDE 2M:  x_s = (sigma_s/sigma_t) e^{-h} x_t + alpha_s (1 - e^{-2h}) D + sigma_s √(1 - e^{-2h}) z
                                (the same paper's SDE-DPM-Solver++(2M), D as in 2M)
  3M:  D such that the integral is exact for the parabola through the last three x̂_0

A multi-step method begins at order 1. Its order rises as it collects past predictions. The step to
s = 0 has order 1 and returns x̂_0, because h is infinite there. At zero terminal SNR the step from
t = T has order 1 too.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.process import GaussianProcess, read
from ddpm_jax.samplers.base import Noise, Sampler, with_options
from ddpm_jax.samplers.ode import interval, nearest, weights
from ddpm_jax.types import Array, DenoiseFn, Prediction, PRNGKey


class MultistepState(NamedTuple):
    """The sample and the past predictions, latest first.

    Attributes:
      x: [B, ...] float32, the sample.
      x_0: predictions at the timesteps before this one, each [B, ...].
      h: length in λ of the step that followed each prediction, scalars; inf if there is no
        prediction.
    """

    x: Array
    x_0: tuple[Array, ...]
    h: tuple[Array, ...]


class SinglestepState(NamedTuple):
    """The sample, [B, ...] float32."""

    x: Array


def dpm_solver_pp_2m(process: GaussianProcess, stochastic: bool = False) -> Sampler:
    """Build DPM-Solver++(2M), or SDE-DPM-Solver++(2M) (Lu et al. 2022, algorithm 2).

    One evaluation a step. As an ODE solver it has order 2.

    Limits: the first step is a step of `ddim`, with eta = 1 if stochastic and eta = 0 otherwise.
    The last step returns x̂_0. If all data are one point, the sampler returns it exactly.

    Args:
      process: the chain.
      stochastic: if True, solve the reverse SDE instead of the ODE.
    """
    advance = with_options(_advance_2m, stochastic=bool(stochastic))
    return Sampler(process, with_options(_start, length=1), advance)


def _advance_2m(
    process: GaussianProcess,
    denoise_fn: DenoiseFn,
    noise: Noise,
    key: PRNGKey,
    state: MultistepState,
    t: Array,
    s: Array,
    *,
    stochastic: bool,
) -> tuple[MultistepState, Prediction]:
    prediction = denoise_fn(state.x, t)
    way = interval(process, t, s)
    # 0 at the first step, where state.h is inf, and at the last step, where way.h is inf
    ratio = jnp.where(jnp.isfinite(way.h), way.h / state.h[0], 0.0)
    x_0 = prediction.x_0 + 0.5 * ratio * (prediction.x_0 - state.x_0[0])
    if stochastic:
        alpha_s = read(process.sqrt_alphas_cumprod, s)
        sigma_s = read(process.sqrt_one_minus_alphas_cumprod, s)
        x_s = way.decay * jnp.exp(-way.h) * state.x + alpha_s * way.fraction * x_0
        x_s = x_s + sigma_s * jnp.sqrt(way.fraction) * noise(key, t, x_s.shape)
    else:
        x_s = way.flow(state.x, x_0)
    return MultistepState(x_s, (prediction.x_0,), (way.h,)), prediction


def dpm_solver_pp_3m(process: GaussianProcess) -> Sampler:
    """Build DPM-Solver++(3M): three predictions, one evaluation a step, order 3.

    The second step is a step of 2M.

    Limits: the first step is a step of `ddim` at eta = 0. The last step returns x̂_0. If all data
    are one point, the sampler returns it exactly.

    Deviates from the authors' code: their second-derivative term has half its weight, so their
    order is 2. Here the parabola is integrated exactly.
    """
    return Sampler(process, with_options(_start, length=2), _advance_3m)


def _advance_3m(
    process: GaussianProcess,
    denoise_fn: DenoiseFn,
    noise: Noise,
    key: PRNGKey,
    state: MultistepState,
    t: Array,
    s: Array,
) -> tuple[MultistepState, Prediction]:
    prediction = denoise_fn(state.x, t)
    way = interval(process, t, s)
    x_0 = combine(way.h, prediction.x_0, state.x_0, state.h)
    past = (prediction.x_0, state.x_0[0]), (way.h, state.h[0])
    return MultistepState(way.flow(state.x, x_0), *past), prediction


def dpm_solver_pp_2s(process: GaussianProcess) -> Sampler:
    """Build DPM-Solver++(2S): a single-step method of order 2 (Lu et al. 2022, algorithm 1).

    Two evaluations a step, but one evaluation in a step of order 1. Such steps are: those with
    t - s = 1, because no timestep is between t and s; the step to s = 0; and the step from t = T at
    zero terminal SNR.

    Limits: on the full chain it is `ddim` at eta = 0. The last step returns x̂_0. If all data are
    one point, the sampler returns it exactly.

    Deviates from algorithm 1: u is the timestep nearest in log-SNR to the middle (r = 1/2). The
    formula then uses the r of this timestep.
    """
    return Sampler(process, SinglestepState, _advance_2s)


def _advance_2s(
    process: GaussianProcess,
    denoise_fn: DenoiseFn,
    noise: Noise,
    key: PRNGKey,
    state: SinglestepState,
    t: Array,
    s: Array,
) -> tuple[SinglestepState, Prediction]:
    prediction = denoise_fn(state.x, t)
    way = interval(process, t, s)

    def middle(x_0: Array) -> Array:
        log_snr = 0.5 * (read(process.log_snr, t) + read(process.log_snr, s))
        u = nearest(process, log_snr, s + 1, t - 1)
        half = interval(process, t, u)
        x_0_u = denoise_fn(half.flow(state.x, x_0), u).x_0
        return x_0 + 0.5 * (way.h / half.h) * (x_0_u - x_0)

    is_first_order = (t - s == 1) | ~jnp.isfinite(way.h)
    x_0 = jax.lax.cond(is_first_order, lambda x_0: x_0, middle, prediction.x_0)
    return SinglestepState(way.flow(state.x, x_0)), prediction


def combine(h: Array, x_0: Array, past: tuple[Array, ...], past_h: tuple[Array, ...]) -> Array:
    """Return the constant x_0 that gives the same step as the polynomial through x_0 and the past.

    The order is 1 plus the number of past steps of finite length. At order 2 the slope has the
    weight 1/2, as in 2M.

    Args:
      h: scalar, the length of the step in λ. If it is inf, the result is x_0.
      x_0: [B, ...] float, the prediction at t.
      past: one or two earlier predictions, each [B, ...], latest first.
      past_h: length in λ of the step that followed each earlier prediction, scalars.
    """
    ratio = jnp.where(jnp.isfinite(h), h / past_h[0], 0.0)
    second = x_0 + 0.5 * ratio * (x_0 - past[0])
    if len(past) == 1:
        return second
    is_third = jnp.isfinite(h) & jnp.isfinite(past_h[1])
    # 1 instead of inf: otherwise the weights of the unused branch would make gradients NaN
    h, h_1, h_2 = (jnp.where(is_third, step, 1.0) for step in (h, *past_h))
    w = weights(h, [jnp.zeros_like(h), -h_1 / h, -h_1 / h - h_2 / h])
    third = w[0] * x_0 + w[1] * past[0] + w[2] * past[1]
    return jnp.where(is_third, third, second)


def _start(x_T: Array, *, length: int) -> MultistepState:
    """Return the state at T, which has no past predictions."""
    return MultistepState(
        x_T, (jnp.zeros_like(x_T),) * length, (jnp.full((), jnp.inf, x_T.dtype),) * length
    )
