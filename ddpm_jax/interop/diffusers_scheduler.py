"""diffusers' DDPMScheduler and DDIMScheduler as our process, kind of prediction and sampler.

Their t counts 0..T-1, ours 1..T. Their file does not say the number of steps: a DDPMPipeline takes
1000 by default, and a DDIMPipeline 50.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax import build
from ddpm_jax.config import Config, ProcessConfig, SampleConfig
from ddpm_jax.errors import UserError, unknown
from ddpm_jax.interop.imported import Chain
from ddpm_jax.pretrained.diffusers_layout import refuse

DDPM, DDIM = "DDPMScheduler", "DDIMScheduler"
DDPM_STEPS, DDIM_STEPS = 1000, 50
COMMON: Mapping[str, Any] = {  # defaults of diffusers 0.42
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "clip_sample": True,
    "prediction_type": "epsilon",
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "clip_sample_range": 1.0,
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
}
DEFAULTS = {
    DDPM: COMMON | {"variance_type": "fixed_small"},
    DDIM: COMMON | {"set_alpha_to_one": True},
}
OLD = ("tensor_format", "timestep_values", "predict_epsilon", "variance_type", "set_alpha_to_one")
SCHEDULES = {
    "linear": "linear",
    "scaled_linear": "quadratic",
    "squaredcos_cap_v2": "cosine",
    "sigmoid": "sigmoid",
}
KINDS = {"epsilon": "eps", "sample": "x_0", "v_prediction": "v"}
SPACINGS = {"leading": "leading", "linspace": "uniform", "trailing": "trailing"}
VARIANCES = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",  # the same number by another formula
    "fixed_large": "fixed_large",
    "learned_range": "learned_range",
}
NO_LIMIT = 1e6  # a sample_max_value that no |x_0| reaches


def read(path: pathlib.Path, found: Mapping[str, Any], *, ddim: bool, learns: bool) -> Chain:
    """Return a scheduler in our terms.

    Args:
      path: the file, for the messages.
      found: the options in the file.
      ddim: whether the pipeline samples by DDIM, whatever the scheduler.
      learns: whether the network predicts its variance too.

    Raises:
      UserError: an option is unknown or cannot be represented; the message names the option and
        its value.
    """
    kind = found.get("_class_name")
    if kind not in DEFAULTS:
        raise refuse(path, "_class_name", kind, f"only {DDPM} or {DDIM} can")
    own = {name: value for name, value in found.items() if not name.startswith("_")}
    known = DEFAULTS[kind]
    for name in own:
        if name not in known and name not in OLD:
            raise unknown(f"option in {path}:", name, known)
    if own.get("predict_epsilon") is False and "prediction_type" not in own:  # before 0.8
        own["prediction_type"] = "sample"
    options = {**known, **own}
    ddim = ddim or kind == DDIM
    if ddim and learns:
        allowed = f"a network with out_channels = 2 in_channels needs {DDPM} with learned_range"
        raise refuse(path, "_class_name", kind, allowed)
    _check(path, options, ddim)
    T = options["num_train_timesteps"]
    schedule = SCHEDULES[options["beta_schedule"]]
    ends = {} if schedule == "cosine" else _ends(path, options)
    zero = bool(options["rescale_betas_zero_snr"])
    process = ProcessConfig(schedule, T, **ends, zero_terminal_snr=zero)
    spacing = SPACINGS[options["timestep_spacing"]]
    num_steps = min(T, DDIM_STEPS) if ddim else (DDPM_STEPS if T > DDPM_STEPS else 0)
    threshold = 0.0
    if options["thresholding"] and options["sample_max_value"] > 1:
        threshold = float(options["dynamic_thresholding_ratio"])
    sample = SampleConfig(
        sampler="ddim" if ddim else "ancestral",
        num_steps=num_steps,
        timesteps=spacing,
        clip_x_0=bool(options["clip_sample"] or options["thresholding"]),
        dynamic_threshold=threshold,
    )
    if not ddim:
        sample = dataclasses.replace(sample, variance=_variance(path, options, learns))
    chain = Chain(process, KINDS[options["prediction_type"]], sample)
    if ddim and not _is_their_ddim_grid(chain.process, sample):
        allowed = "DDIMScheduler goes to t - T // num_steps, which is another grid; set 'leading'"
        raise refuse(path, "timestep_spacing", options["timestep_spacing"], allowed)
    return chain


def options_of(config: Config) -> dict[str, Any]:
    """Return the options of the scheduler that walks the same chain as the run's sampler.

    The sampler ddim becomes a DDIMScheduler, every other one a DDPMScheduler.

    Raises:
      UserError: diffusers has no such process or grid; the message names the option.
    """
    c, sample = config.process, config.sample
    if c.schedule not in SCHEDULES.values():
        allowed = ", ".join(SCHEDULES.values())
        raise _not_theirs("process.schedule", c.schedule, allowed)
    ddim = sample.sampler == "ddim"
    if ddim and sample.eta:
        raise _not_theirs("sample.eta", sample.eta, "0; there eta is an argument of the call")
    if sample.guidance:
        raise _not_theirs("sample.guidance", sample.guidance, "0: its pipeline does not guide")
    spacings = {ours: theirs for theirs, ours in SPACINGS.items()}
    all_steps = sample.num_steps in (0, c.num_timesteps)
    if all_steps or sample.sampler not in ("ancestral", "ddim"):
        spacing = spacings.get(sample.timesteps, "trailing")
    elif sample.timesteps not in spacings or (ddim and not _is_their_ddim_grid(c, sample)):
        allowed = "leading, or trailing where num_steps divides T"
        raise _not_theirs("sample.timesteps", sample.timesteps, allowed if ddim else f"{spacings}")
    else:
        spacing = spacings[sample.timesteps]
    options = {
        "_class_name": DDIM if ddim else DDPM,
        "beta_end": c.beta_T or 0.02 * 1000 / c.num_timesteps,
        "beta_schedule": next(theirs for theirs, ours in SCHEDULES.items() if ours == c.schedule),
        "beta_start": c.beta_1 or 1e-4 * 1000 / c.num_timesteps,
        "clip_sample": sample.clip_x_0,
        "clip_sample_range": 1.0,
        "dynamic_thresholding_ratio": sample.dynamic_threshold or 0.995,
        "num_train_timesteps": c.num_timesteps,
        "prediction_type": next(
            theirs for theirs, ours in KINDS.items() if ours == config.loss.kind
        ),
        "rescale_betas_zero_snr": c.zero_terminal_snr,
        "sample_max_value": NO_LIMIT if sample.dynamic_threshold else 1.0,
        "steps_offset": 0,
        "thresholding": sample.dynamic_threshold > 0,
        "timestep_spacing": spacing,
        "trained_betas": None,
    }
    return options | ({"set_alpha_to_one": True} if ddim else {"variance_type": sample.variance})


def _check(path: pathlib.Path, options: Mapping[str, Any], ddim: bool) -> None:
    """Refuse the options that cannot be represented."""
    for name, table in (
        ("beta_schedule", SCHEDULES),
        ("prediction_type", KINDS),
        ("timestep_spacing", SPACINGS),
    ):
        if options[name] not in table:
            raise refuse(path, name, options[name], f"only {', '.join(table)} can")
    if not (type(options["num_train_timesteps"]) is int and options["num_train_timesteps"] > 0):
        value = options["num_train_timesteps"]
        raise refuse(path, "num_train_timesteps", value, "it must be a whole number of at least 1")
    if options["trained_betas"] is not None:
        raise refuse(path, "trained_betas", "[...]", "only None can: use beta_schedule")
    for name in ("clip_sample_range", "sample_max_value", "dynamic_thresholding_ratio"):
        if type(options[name]) not in (int, float):
            raise refuse(path, name, options[name], "it must be a number")
    if options["clip_sample"] and not options["thresholding"] and options["clip_sample_range"] != 1:
        raise refuse(path, "clip_sample_range", options["clip_sample_range"], "only 1.0 can")
    if options["thresholding"] and 1 < options["sample_max_value"] < NO_LIMIT:
        allowed = f"with thresholding, only 1 (no scaling) or {NO_LIMIT:g} (no limit) can"
        raise refuse(path, "sample_max_value", options["sample_max_value"], allowed)
    if options["timestep_spacing"] == "leading" and options["steps_offset"] != 0:
        raise refuse(path, "steps_offset", options["steps_offset"], "only 0 can")
    if ddim and not options.get("set_alpha_to_one", True):
        raise refuse(path, "set_alpha_to_one", False, "only True can: the last step gives x_0")
    if options["rescale_betas_zero_snr"] and options["prediction_type"] == "epsilon":
        allowed = "with rescale_betas_zero_snr=True, x_T has no eps to predict"
        raise refuse(path, "prediction_type", "epsilon", allowed)


def _ends(path: pathlib.Path, options: Mapping[str, Any]) -> dict[str, float]:
    """Return beta_1 and beta_T."""
    ends = {}
    for theirs, ours in (("beta_start", "beta_1"), ("beta_end", "beta_T")):
        value = options[theirs]
        if type(value) is not float or not 0 < value < 1:
            raise refuse(path, theirs, value, "it must be a number in (0, 1)")
        ends[ours] = value
    return ends


def _variance(path: pathlib.Path, options: Mapping[str, Any], learns: bool) -> str:
    """Return our sample.variance of a DDPMScheduler."""
    theirs = options.get("variance_type", "fixed_small")
    if theirs not in VARIANCES:
        raise refuse(path, "variance_type", theirs, f"only {', '.join(VARIANCES)} can")
    if learns != (theirs == "learned_range"):
        needs = "in_channels" if theirs != "learned_range" else "2 in_channels"
        raise refuse(
            path, "variance_type", theirs, f"it needs a network with out_channels = {needs}"
        )
    return VARIANCES[theirs]


def _is_their_ddim_grid(process: ProcessConfig, sample: SampleConfig) -> bool:
    """Return whether our grid goes where diffusers' DDIM goes: from t to t - T // num_steps."""
    grid = build.grid(sample, build.process(process))
    stride = process.num_timesteps // (len(grid) - 1)
    return np.array_equal(np.maximum(grid[:-1] - stride, 0), grid[1:])


def _not_theirs(name: str, value: Any, allowed: str) -> UserError:
    return UserError(f"{name} is {value!r}, but diffusers' schedulers can only hold {allowed}")
