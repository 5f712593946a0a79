"""DPM-Solver++: exponential integrators of the probability-flow ODE for the prediction of x_0.

  x_s = (sigma_s/sigma_t) x_t + alpha_s (1 - e^{-h}) D,  h = λ_s - λ_t,  λ = ln(alpha/sigma)
  2M:  D = x̂_0(t) + h/(2 h_1) (x̂_0(t) - x̂_0(t_1))         t_1 the timestep before, h_1 = λ_t - λ_t1
  2S:  D = x̂_0(t) + 1/(2r) (x̂_0(u) - x̂_0(t)),            λ_u = λ_t + r h
                                (Lu et al. 2022, DPM-Solver++, algorithms 2 and 1)
  SDE 2M:  x_s = (sigma_s/sigma_t) e^{-h} x_t + alpha_s (1 - e^{-2h}) D + sigma_s √(1 - e^{-2h}) z
                                (the same paper's SDE-DPM-Solver++(2M), D as in 2M)
  3M:  D such that the integral is exact for the parabola through the last three x̂_0

Multi-step methods begin at order 1 and rise as the past fills up. The step to s = 0 has order 1
and returns x_0-hat, since h is infinite there, and so has the step from t = T at zero terminal SNR.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.process import GaussianProcess, read
from ddpm_jax.samplers.base import Noise, Sampler, with_options
from ddpm_jax.samplers.ode import interval, nearest, weights
from ddpm_jax.types import Array, DenoiseFn, Prediction, PRNGKey


class MultistepState(NamedTuple):
    """The sample and the past, latest first.

    Attributes:
      x: [B, ...] float32.
      x_0: predictions at the timesteps before this one, each [B, ...].
      h: the steps in λ that led from each of them to the next, scalars; inf where there is none.
    """

    x: Array
    x_0: tuple[Array, ...]
    h: tuple[Array, ...]


class SinglestepState(NamedTuple):
    """The sample, [B, ...] float32."""

    x: Array


def dpm_solver_pp_2m(process: GaussianProcess, stochastic: bool = False) -> Sampler:
    """Build DPM-Solver++(2M), or SDE-DPM-Solver++(2M) (Lu et al. 2022, algorithm 2).

    One evaluation a step. Order 2 as an ODE solver. Limits: the first step is `ddim`'s, of eta = 0
    or, if stochastic, of eta = 1; the last step returns x_0-hat; data that are one point are
    returned exactly.

    Args:
      process: the chain.
      stochastic: solve the reverse SDE instead of the ODE.
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
    # 0 at the first step, whose past is infinitely far, and at the last, which has none
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

    The second step is 2M's. Limits: the first step is `ddim`'s at eta = 0; the last step returns
    x_0-hat; data that are one point are returned exactly.

    Deviates from the authors' code: there the second-derivative term enters with half its weight,
    which leaves order 2; here the parabola is integrated exactly.
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

    Two evaluations a step, one in steps of order 1: those with t - s = 1, which have no timestep
    in between, the one to s = 0 and the one from t = T at zero terminal SNR.

    Limits: on the full chain it is `ddim` at eta = 0; the last step returns x_0-hat; data that are
    one point are returned exactly.

    Deviates from algorithm 1: u is the timestep nearest in log-SNR to the middle (r = 1/2), and r
    is then what it really is.
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
    """Return the constant x_0 that stands for the polynomial through x_0 and the past.

    The order is as high as the past has finite steps; at order 2 the slope counts half, as in 2M.

    Args:
      h: the step ahead in λ; where it is inf, the result is x_0.
      x_0: [B, ...] float, the prediction at t.
      past: one or two earlier predictions, latest first.
      past_h: the steps in λ from each of them to the next.
    """
    ratio = jnp.where(jnp.isfinite(h), h / past_h[0], 0.0)
    second = x_0 + 0.5 * ratio * (x_0 - past[0])
    if len(past) == 1:
        return second
    is_third = jnp.isfinite(h) & jnp.isfinite(past_h[1])
    # 1 in place of inf: the weights of the branch that is not taken must not make gradients NaN
    h, h_1, h_2 = (jnp.where(is_third, step, 1.0) for step in (h, *past_h))
    w = weights(h, [jnp.zeros_like(h), -h_1 / h, -h_1 / h - h_2 / h])
    third = w[0] * x_0 + w[1] * past[0] + w[2] * past[1]
    return jnp.where(is_third, third, second)


def _start(x_T: Array, *, length: int) -> MultistepState:
    """Return the state at T, whose past is empty."""
    return MultistepState(
        x_T, (jnp.zeros_like(x_T),) * length, (jnp.full((), jnp.inf, x_T.dtype),) * length
    )
