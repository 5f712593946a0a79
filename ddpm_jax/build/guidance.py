"""The guidance of a config; the model must be able to follow it."""

from ddpm_jax import guidance
from ddpm_jax.config import Config, ModelConfig
from ddpm_jax.config_checks import check_unused
from ddpm_jax.errors import UserError
from ddpm_jax.guidance import Guide
from ddpm_jax.models import Model
from ddpm_jax.noisy_classifier import label_log_prob
from ddpm_jax.process import GaussianProcess
from ddpm_jax.types import Array


def from_config(
    config: Config, process: GaussianProcess, weight: Array | None = None
) -> float | Guide:
    """Build the classifier-free guidance of `config.sample`. 0.0 means no guidance.

    Args:
      config: the config.
      process: the chain.
      weight: a weight w that may be traced; it replaces `config.sample.guidance`. None keeps that
        of the config.

    Raises:
      UserError: the model has no conditioning with a null value, or training never uses the null
        value; a number is out of its range; an option is set although the guidance is off.
    """
    c = config.sample
    w, interval, rescale = c.guidance, c.guidance_interval, c.guidance_rescale
    if weight is not None:
        w = weight
    elif not w:
        options, users = ("guidance_interval", "guidance_rescale"), " (any other weight: yes)"
        check_unused(c, options, "sample.guidance=0", users)
        return 0.0
    if not guidable(config.model):
        raise UserError(
            f"sample.guidance is {w}, but the model has no classes or texts to guide to "
            "(model.class_conditional is False, model.embedding_dim and model.context_dim are 0); "
            "set sample.guidance=0"
        )
    if not config.loss.p_uncond:
        raise UserError(
            f"sample.guidance is {w}, but training never uses the null class (loss.p_uncond is 0); "
            "train with loss.p_uncond=0.1, or set sample.guidance=0"
        )
    if len(interval) not in (0, 2):
        raise UserError(f"sample.guidance_interval must be (low, high) or (), found {interval}")
    between = (interval[0], interval[1]) if interval else None
    guidance.check(w, between, rescale, process.num_timesteps)

    def guide(process, denoiser, params, cond):
        pair_fn = denoiser(params, guidance.with_null(cond))
        return guidance.classifier_free(process, pair_fn, w, interval=between, rescale=rescale)

    return guide


def guidable(config: ModelConfig) -> bool:
    """Return whether the network has a conditioning with a null value: classes, texts, views."""
    texts = config.embedding_dim > 0 or config.context_dim > 0
    return config.class_conditional or texts or config.name == "xunet"


def with_classifier(config: Config, process: GaussianProcess, judge: Model, scale: float) -> Guide:
    """Build the guidance by a classifier, in addition to the guidance of `config.sample`.

    The guide takes params {"model": ..., "classifier": ...}. The wanted class is cond["label"]. A
    model without classes does not receive it.

    Args:
      config: the config of the model.
      process: the chain.
      judge: the classifier of noisy images.
      scale: γ, the weight of the classifier's gradient, at least 0.

    Raises:
      UserError: as in `from_config`, or scale is negative. The guide raises it if cond has no
        "label".
    """
    own, conditional = from_config(config, process), config.model.class_conditional
    guidance.check_scale(scale)

    def guide(process, denoiser, params, cond):
        if not cond or "label" not in cond:
            found = sorted(cond) if cond else "none"
            raise UserError(
                "classifier guidance needs the wanted classes, but cond has no 'label' "
                f"(found {found}); pass cond={{'label': labels}}"
            )
        seen = {name: rows for name, rows in cond.items() if conditional or name != "label"}
        if callable(own):
            denoise_fn = own(process, denoiser, params["model"], seen)
        else:
            denoise_fn = denoiser(params["model"], seen)

        def log_prob(x_t, t):
            weights, label = params["classifier"], cond["label"]
            return label_log_prob(process, judge.apply, weights, x_t, t, label)

        return guidance.classifier(process, denoise_fn, log_prob, scale)

    return guide
