"""The guidance that a config asks for, checked against what its model can do."""

from ddpm_jax import guidance
from ddpm_jax.config import Config, ModelConfig
from ddpm_jax.config_checks import check_unused
from ddpm_jax.errors import UserError
from ddpm_jax.guidance import Guide
from ddpm_jax.models import Model
from ddpm_jax.noisy_classifier import label_log_prob
from ddpm_jax.process import GaussianProcess


def from_config(config: Config, process: GaussianProcess) -> float | Guide:
    """Build the classifier-free guidance of `config.sample`; 0 is none.

    Raises:
      UserError: guidance of a model that is conditional on nothing or never learned the null class,
        numbers out of range, or settings of a guidance that is off.
    """
    c = config.sample
    w, interval, rescale = c.guidance, c.guidance_interval, c.guidance_rescale
    if not w:
        options, users = ("guidance_interval", "guidance_rescale"), " (any other weight: yes)"
        check_unused(c, options, "sample.guidance=0", users)
        return 0.0
    if not guidable(config.model):
        raise UserError(
            f"sample.guidance is {w}, but the model has no classes to guide to, nor text "
            "(model.class_conditional is False, model.embedding_dim and model.context_dim are 0); "
            "set sample.guidance=0"
        )
    if not config.loss.p_uncond:
        raise UserError(
            f"sample.guidance is {w}, but the null class is never trained (loss.p_uncond is 0); "
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
    """Return whether the network is conditional on something that has a null value."""
    return config.class_conditional or config.embedding_dim > 0 or config.context_dim > 0


def with_classifier(config: Config, process: GaussianProcess, judge: Model, scale: float) -> Guide:
    """Build the guidance by a classifier, on top of `config.sample`'s own.

    Its params are {"model": ..., "classifier": ...}; the wanted class is cond["label"], which a
    model without classes does not see.
    """
    own, conditional = from_config(config, process), config.model.class_conditional
    guidance.check_scale(scale)

    def guide(process, denoiser, params, cond):
        if not cond or "label" not in cond:
            raise UserError("classifier guidance needs cond={'label': labels}: none was given")
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
