"""From a network to a denoiser: params, conditioning, kind and clipping closed over."""

import jax.numpy as jnp

from ddpm_jax.predictions import to_prediction
from ddpm_jax.process import GaussianProcess
from ddpm_jax.types import ApplyFn, Array, Conditioning, DenoiseFn, Params, Prediction, PRNGKey


def apply_network(
    process: GaussianProcess,
    apply_fn: ApplyFn,
    params: Params,
    x_t: Array,
    t: Array,
    cond: Conditioning | None,
    *,
    train: bool,
    key: PRNGKey | None,
) -> Array:
    """Return the network's output at x_t, in the type of x_t.

    The one place that tells a network its t: as the index in the chain it was trained on, less 1,
    so that weights trained by Ho et al. and by diffusers fit.

    Args:
      process: the chain.
      apply_fn: the network.
      params: its parameters.
      x_t: [B, ...] float.
      t: int32 in 1..T, scalar or [B].
      cond: None, or arrays with leading axis B.
      train: whether dropout and the like are on.
      key: randomness of a training step; None where `train` is False.
    """
    t = jnp.broadcast_to(process.timesteps[t] - 1, x_t.shape[:1])
    return apply_fn(params, x_t, t, cond, train=train, key=key).astype(x_t.dtype)


def make_denoise_fn(
    process: GaussianProcess,
    apply_fn: ApplyFn,
    params: Params,
    cond: Conditioning | None = None,
    *,
    kind: str = "eps",
    clip_x_0: bool = True,
) -> DenoiseFn:
    """Build the function (x_t, t) -> Prediction that samplers look through.

    Whatever the kind and the clipping, x_t = alpha_t x_0 + sigma_t eps holds for the prediction.

    Args:
      process: the chain.
      apply_fn: the network.
      params: its parameters.
      cond: None, or arrays with leading axis B.
      kind: what the network predicts: "eps", "x_0" or "v".
      clip_x_0: clip x_0 to [-1, 1] and take the eps that agrees with it.
    """

    def denoise_fn(x_t: Array, t: Array) -> Prediction:
        output = apply_network(process, apply_fn, params, x_t, t, cond, train=False, key=None)
        prediction = to_prediction(process, output, x_t, t, kind)
        if not clip_x_0:
            return prediction
        return to_prediction(process, jnp.clip(prediction.x_0, -1.0, 1.0), x_t, t, "x_0")

    return denoise_fn
