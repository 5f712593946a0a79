"""Log-likelihoods by the probability-flow ODE, solved by diffrax with adaptive steps.

The ODE runs in u = ln σ̄_t, σ̄_t = sigma_t/alpha_t, from t = 1 to t = T:

  dx/du = sigma (ε̂(x, t) - sigma x)                  (Song et al. 2021, eq. 13, with u for the time)
        = alpha sigma v̂ = alpha (alpha x - x̂_0)      for the other kinds
  ln p(x_1) = ln N(x_T; 0, I) + ∫ ∇·(dx/du) du       (Chen et al. 2018, eq. 8; Song et al., eq. 39)
  ∇·f = E_z zᵀ(∂f/∂x)z,  z of random signs           (Hutchinson; Grathwohl et al. 2019, 3.1)

alpha and sigma are exact at every u. The network receives a t that is interpolated in the table,
linearly in u. It must therefore accept a float32 t.

The density is that of x_1/alpha_1: data with the chain's least noise, σ̄_1. With zero terminal SNR u
is infinite at T, so the ODE ends at T - 1. An image keeps its probes for the whole ODE, so that the
solver sees a smooth function. This module needs the extra `likelihood` (diffrax).
"""

import functools
import math
import types
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import pixels
from ddpm_jax.errors import UserError, unknown
from ddpm_jax.predictions import KINDS, check_kind
from ddpm_jax.process import GaussianProcess
from ddpm_jax.randomness import image_keys, threefry
from ddpm_jax.runtime import rows
from ddpm_jax.types import ApplyFn, Array, Conditioning, Params, PRNGKey

EVALUATIONS_PER_STEP = 6  # of Dopri5: its last stage is the first stage of the next step


def make_log_prob(
    process: GaussianProcess,
    apply_fn: ApplyFn,
    *,
    kind: str = "eps",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    num_probes: int = 1,
    max_steps: int = 1000,
) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Build `log_prob(params, key, x_0, cond=None, *, start=0)`: nats of continuous data.

    `log_prob` takes x_0: [B, ...] float. It returns ln p: [B] float32, and the number of network
    evaluations of each image: [B] int32. An evaluation includes the derivatives along the probes.

    Image i has its own steps, and draws its probes from fold_in(key, start + i). The rest of the
    batch therefore changes the result by rounding only. Over the probes the estimate is unbiased,
    up to the solver's tolerance. It has no variance if the Jacobian is diagonal, as with
    independent pixels.

    Args:
      process: the chain.
      apply_fn: the network; it receives t as float32. If it returns 2C channels, the first C are
        the prediction.
      kind: what the network predicts: "eps", "x_0" or "v".
      rtol, atol: > 0, the tolerances of the solver (Dormand and Prince's 5(4)). They bound the
        error of a step: the root mean square over x and the log-density per dimension. Song et al.
        use 1e-5.
      num_probes: number of probes of Hutchinson's estimator, at least 1.
      max_steps: largest number of solver steps for one image, at least 1.

    Raises:
      UserError: unknown kind; eps at zero terminal SNR; fewer than 2 timesteps with a finite
        log-SNR; a number is out of its range; diffrax is not installed. `log_prob` raises it if
        x_0 is not float, or if the solver does not finish in max_steps.
    """
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    check_kind(process, kind)
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not 0.0 < value < math.inf:
            raise UserError(f"{name} must be > 0, found {value}")
    for name, value in (("num_probes", num_probes), ("max_steps", max_steps)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, found {value}")
    u = -0.5 * np.asarray(process.log_snr[1:], np.float64)
    u = u[np.isfinite(u)]
    if u.size < 2:
        raise UserError(
            "the ODE needs a chain of at least 2 timesteps with a finite log-SNR, "
            f"found {u.size}; raise num_timesteps"
        )
    times = np.asarray(process.timesteps)[1 : u.size + 1]
    tables = u.astype(np.float32), times.astype(np.float32)
    solve = make_solve(apply_fn, kind, num_probes, max_steps)

    def log_prob(
        params: Params,
        key: PRNGKey,
        x_0: Array,
        cond: Conditioning | None = None,
        *,
        start: int = 0,
    ) -> tuple[np.ndarray, np.ndarray]:
        pixels.check_x_0(x_0)
        keys = image_keys(key, np.arange(start, start + len(x_0)))
        shared = tables, dict(rtol=rtol, atol=atol), params
        solved = solve(shared, (keys, jnp.asarray(x_0, jnp.float32), cond))
        nats, steps = jax.device_get(solved)
        if not np.all(found := np.isfinite(nats)):
            raise UserError(
                f"the ODE of image {start + int(np.argmin(found))} was not solved in "
                f"max_steps = {max_steps}; raise max_steps or the tolerances (rtol {rtol:g}, "
                f"atol {atol:g}), or check that the network's output is finite"
            )
        return nats, EVALUATIONS_PER_STEP * steps + 1

    return log_prob


def make_bits_per_dim(
    process: GaussianProcess,
    apply_fn: ApplyFn,
    *,
    kind: str = "eps",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    num_probes: int = 1,
    max_steps: int = 1000,
) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Build `bits_per_dim(params, key, images, cond=None, *, start=0)` of 8-bit images.

    `bits_per_dim` takes images: uint8 [B, ...]. It returns the bound below per dimension: [B]
    float32, and the number of network evaluations of each image: [B] int32.

    Pixels are dequantised: x_0 = (k + u - 1/2) / 127.5 - 1, with u uniform in [0, 1). The centre of
    each bin is then the x_0 that training uses for k. The density of k + u is the density of x_0
    divided by 127.5, and

      -log_2 P(k) <= E_u[-log_2 p(x_0)] + log_2 127.5     per dimension   (Theis et al. 2016, 3.1)

    Arguments and errors as in `make_log_prob`. `bits_per_dim` also raises `UserError` if the images
    are not uint8.
    """
    log_prob = make_log_prob(
        process,
        apply_fn,
        kind=kind,
        rtol=rtol,
        atol=atol,
        num_probes=num_probes,
        max_steps=max_steps,
    )

    def bits_per_dim(
        params: Params,
        key: PRNGKey,
        images: Array,
        cond: Conditioning | None = None,
        *,
        start: int = 0,
    ) -> tuple[np.ndarray, np.ndarray]:
        if images.dtype != np.uint8:
            raise UserError(
                f"images must be uint8, 0..255, found {images.dtype}; convert them first"
            )
        u_key, probe_key = jax.random.split(threefry(key))
        u_keys = image_keys(u_key, np.arange(start, start + len(images)))
        x_0 = pixels.dequantise(u_keys, images)
        nats, evaluations = log_prob(params, probe_key, x_0, cond, start=start)
        return math.log2(pixels.SCALE) - nats / (x_0[0].size * math.log(2.0)), evaluations

    return bits_per_dim


@functools.lru_cache(maxsize=8)
def make_solve(
    apply_fn: ApplyFn, kind: str, num_probes: int, max_steps: int
) -> Callable[..., tuple[Array, Array]]:
    """Build ((tables, tolerances, params), (keys, x_0, cond)) -> ln p: [B] nats, steps: [B] int32.

    The images are spread over all local devices. ln p is NaN if the solver did not finish in
    max_steps. One compiled program serves all chains and tolerances.
    """
    diffrax = _diffrax()

    def solve(
        shared: tuple[tuple[Array, Array], dict[str, float], Params],
        image: tuple[PRNGKey, Array, Conditioning | None],
    ) -> tuple[Array, Array]:
        ((u_table, times), tolerances, params), (key, x_0, cond) = shared, image
        signs = jax.random.rademacher(key, (num_probes, *x_0.shape), jnp.float32)
        cond = jax.tree.map(lambda c: c[None], cond)

        def slope(u: Array, x: Array) -> Array:
            alpha, sigma = _alpha_sigma(u)
            t = (jnp.interp(u, u_table, times) - 1.0)[None]  # t - 1, as in `denoise.apply_network`
            output = apply_fn(params, x[None], t, cond, train=False, key=None)
            output = output[0, ..., : x.shape[-1]].astype(x.dtype)
            if kind == "eps":
                return sigma * (output - sigma * x)
            if kind == "x_0":
                return alpha * (alpha * x - output)
            return alpha * sigma * output

        def field(u: Array, y: tuple[Array, Array], args: None) -> tuple[Array, Array]:
            along = jax.vmap(
                lambda z: jax.jvp(functools.partial(slope, u), (y[0],), (z,)), out_axes=(None, 0)
            )
            dx, derivatives = along(signs)
            return dx, (signs * derivatives).sum() / (num_probes * x_0.size)

        alpha_1, _ = _alpha_sigma(u_table[0])
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Dopri5(),
            t0=u_table[0],
            t1=u_table[-1],
            dt0=None,
            y0=(alpha_1 * x_0, jnp.zeros(())),
            stepsize_controller=diffrax.PIDController(**tolerances),
            max_steps=max_steps,
            throw=False,
        )
        x_T, divergence = (y[0] for y in solution.ys)
        prior = -0.5 * (jnp.square(x_T).mean() + math.log(2.0 * math.pi))
        nats = x_0.size * (prior + divergence + jnp.log(alpha_1))
        solved = solution.result == diffrax.RESULTS.successful
        return jnp.where(solved, nats, jnp.nan), solution.stats["num_steps"]

    return rows.over_local_devices(jax.vmap(solve, in_axes=(None, 0)))


def _alpha_sigma(u: Array) -> tuple[Array, Array]:
    """Return alpha and sigma at σ̄ = e^u."""
    return jnp.sqrt(jax.nn.sigmoid(-2.0 * u)), jnp.sqrt(jax.nn.sigmoid(2.0 * u))


def _diffrax() -> types.ModuleType:
    """Import diffrax on first use: no other part of the library needs it."""
    try:
        import diffrax
    except ImportError as error:
        raise UserError(
            "likelihoods by the ODE need diffrax, which is not installed; run "
            "pip install 'ddpm_jax[likelihood]'"
        ) from error
    return diffrax
