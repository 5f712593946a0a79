"""A learned noise schedule: a monotone network from u in [0, 1] to γ = -log SNR.

  γ̃(u) = l_1(u) + l_3(sigmoid(l_2(u))),  all weights positive   (Kingma et al. 2021, appendix H)
  r(u) = (γ̃(u) - γ̃(0)) / (γ̃(1) - γ̃(0)),  the progress, from 0 to 1
  γ(u) = (1 - r(u)) γ_0 + r(u) γ_1

The progress r and the ends γ_0 and γ_1 are trained by different objectives
(`likelihood.continuous`), so they are two functions.

Deviates from the paper's appendix, where the input of l_2 is l_1(u): here, as in the paper's code,
the input of both is u, and l_3 takes a mean instead of a sum.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.errors import UserError
from ddpm_jax.types import Array, Params, PRNGKey

WIDTH = 1024  # width of l_2


class Gamma(NamedTuple):
    """A learned schedule as pure functions.

    Attributes:
      init: key -> params.
      progress: (params, u: [B] float32 in [0, 1]) -> r: [B], strictly increasing in u, from 0 to 1.
      ends: params -> (γ_0, γ_1), float32 scalars.
    """

    init: Callable[[PRNGKey], Params]
    progress: Callable[[Params, Array], Array]
    ends: Callable[[Params], tuple[Array, Array]]


class MonotoneNetwork(nn.Module):
    """γ̃: strictly increasing in u; before training it is nearly linear."""

    @nn.compact
    def __call__(self, u: Array) -> Array:
        """Map u: [B] float32 to γ̃: [B] float32."""
        x = 2.0 * u[:, None] - 1.0
        slope = nn.softplus(self.param("l_1", _raw(0.5), (1, 1)))
        weights = nn.softplus(self.param("l_2", _raw(10.0), (1, WIDTH)))
        biases = self.param("l_2_bias", _steps, (WIDTH,))
        shares = nn.softplus(self.param("l_3", _raw(1.0), (WIDTH, 1)))
        hidden = nn.sigmoid(weights * x + biases[None])  #                         [B, WIDTH]
        return (slope * x + hidden @ shares / WIDTH)[:, 0]


def make_gamma(gamma_0: float, gamma_1: float) -> Gamma:
    """Build a learned schedule; before training γ goes nearly linearly from gamma_0 to gamma_1.

    Args:
      gamma_0: -log SNR at u = 0, the least noise; -13.3 in the paper.
      gamma_1: -log SNR at u = 1, the most noise; 5 in the paper.

    Raises:
      UserError: gamma_0 is not below gamma_1, or one is not finite.
    """
    if not -math.inf < gamma_0 < gamma_1 < math.inf:
        raise UserError(
            "gamma_0 (process.gamma_min) must be below gamma_1 (process.gamma_max), both finite, "
            f"found {gamma_0:g} and {gamma_1:g}"
        )
    network = MonotoneNetwork()

    def init(key: PRNGKey) -> Params:
        interior = network.lazy_init(key, jax.ShapeDtypeStruct((1,), jnp.float32))["params"]
        ends = {"gamma_0": jnp.float32(gamma_0), "gamma_1": jnp.float32(gamma_1)}
        return {"interior": interior, "ends": ends}

    def progress(params: Params, u: Array) -> Array:
        with_ends = jnp.concatenate([jnp.array([0.0, 1.0], u.dtype), u])
        found = network.apply({"params": params["interior"]}, with_ends)
        return (found[2:] - found[0]) / (found[1] - found[0])

    def ends(params: Params) -> tuple[Array, Array]:
        return params["ends"]["gamma_0"], params["ends"]["gamma_1"]

    return Gamma(init, progress, ends)


def table(gamma: Gamma, params: Params, num_timesteps: int) -> Array:
    """Return γ at T = num_timesteps evenly spaced u from 0 to 1: [T] float32.

    `likelihood.continuous.process_from_gamma` builds a process from this table.

    Raises:
      UserError: num_timesteps is below 2.
    """
    if num_timesteps < 2:
        raise UserError(
            f"process.num_timesteps must be at least 2 for a learned schedule, found "
            f"{num_timesteps}"
        )
    r = gamma.progress(params, jnp.linspace(0.0, 1.0, num_timesteps))
    r = r.at[0].set(0.0).at[-1].set(1.0)  # exact, whatever the network's rounding
    gamma_0, gamma_1 = gamma.ends(params)
    return (1.0 - r) * gamma_0 + r * gamma_1


def _raw(weight: float) -> nn.initializers.Initializer:
    """Return an initialiser that makes the softplus of each weight equal to `weight`."""
    return nn.initializers.constant(math.log(math.expm1(weight)))


def _steps(key: PRNGKey, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """Initialise the biases of l_2, so that the sigmoids rise at points spread over [-1.2, 1.2].

    A sigmoid of weight 10 and bias b rises at x = -b / 10; b is uniform in [-12, 12).
    """
    return jax.random.uniform(key, shape, dtype, -12.0, 12.0)
