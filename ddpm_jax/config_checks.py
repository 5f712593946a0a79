"""What a config's values may be: types, ranges, and options that something uses."""

import math
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.errors import UserError, look_up, unknown

INT32 = 2**31 - 1


class Range(NamedTuple):
    """The numbers from low to high; "(" leaves out the low end, ")" the high end."""

    brackets: str
    low: float
    high: float = math.inf

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.brackets[0] == "(" else value >= self.low
        return above and (value < self.high if self.brackets[1] == ")" else value <= self.high)

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"in {self.brackets[0]}{self.low}, {self.high}{self.brackets[1]}"
        if self.low == -math.inf:
            return "a finite number"
        return f"above {self.low}" if self.brackets[0] == "(" else f"at least {self.low}"


ANY, NOT_NEGATIVE, POSITIVE = Range("()", -math.inf), Range("[)", 0), Range("()", 0)
COUNT = Range("[)", 1)
FRACTION, BELOW_1 = Range("[]", 0, 1), Range("[)", 0, 1)
RANGES = {  # of every number in a config; a tuple's is that of its entries
    "data.holdout": BELOW_1,
    "data.image_size": NOT_NEGATIVE,
    "data.channels": Range("[]", 0, 4),
    "data.max_pixels": COUNT,
    "data.objects_per_class": COUNT,
    "data.views_per_object": COUNT,
    "data.imbalance": COUNT,
    "data.max_per_class": NOT_NEGATIVE,
    "data.ram_limit_gb": NOT_NEGATIVE,
    "data.timeout_s": NOT_NEGATIVE,
    "process.num_timesteps": COUNT,
    "process.beta_1": BELOW_1,
    "process.beta_T": BELOW_1,
    "process.gamma_min": ANY,
    "process.gamma_max": ANY,
    "model.channels": COUNT,
    "model.channel_multipliers": COUNT,
    "model.patch_size": COUNT,
    "model.num_res_blocks": COUNT,
    "model.attention_resolutions": COUNT,
    "model.num_heads": COUNT,
    "model.head_dim": NOT_NEGATIVE,
    "model.dropout": BELOW_1,
    "model.num_groups": COUNT,
    "model.norm_eps": POSITIVE,
    "model.freq_shift": FRACTION,
    "model.time_channels": NOT_NEGATIVE,
    "model.time_scale": POSITIVE,
    "model.embedding_dim": NOT_NEGATIVE,
    "model.context_dim": NOT_NEGATIVE,
    "model.super_resolution": NOT_NEGATIVE,
    "model.fourier_features": Range("[]", 0, 20),  # float32 has 24 bits
    "model.latent_channels": COUNT,
    "loss.vlb_lambda": NOT_NEGATIVE,
    "loss.min_snr_gamma": POSITIVE,
    "loss.p2_k": POSITIVE,
    "loss.p2_gamma": NOT_NEGATIVE,
    "loss.p_uncond": BELOW_1,
    "autoencoder.kl_weight": NOT_NEGATIVE,
    "autoencoder.perceptual_weight": NOT_NEGATIVE,
    "autoencoder.discriminator_weight": NOT_NEGATIVE,
    "autoencoder.discriminator_start": Range("[]", 0, INT32),
    "autoencoder.discriminator_channels": COUNT,
    "autoencoder.discriminator_layers": COUNT,
    "optim.learning_rate": POSITIVE,
    "optim.warmup_steps": Range("[]", 0, INT32),
    "optim.clip_norm": NOT_NEGATIVE,
    "optim.b1": BELOW_1,
    "optim.b2": BELOW_1,
    "optim.eps": Range("[)", 1e-18),  # then m / (sqrt(v) + eps) is finite if the gradient is
    "optim.weight_decay": NOT_NEGATIVE,
    "optim.ema_decay": BELOW_1,
    "optim.max_nonfinite": COUNT,
    "train.num_steps": Range("[]", 1, INT32),  # the step is an int32
    "train.batch_size": COUNT,
    "train.seed": Range("[]", 0, 2**32 - 1),  # JAX takes a seed modulo 2^32
    "train.steps_per_call": NOT_NEGATIVE,
    "train.accumulate": COUNT,
    "train.log_every": NOT_NEGATIVE,
    "train.sample_every": NOT_NEGATIVE,
    "train.num_samples": COUNT,
    "train.checkpoint_every": NOT_NEGATIVE,
    "train.keep_last": COUNT,
    "train.keep_every": NOT_NEGATIVE,
    "sample.eta": FRACTION,
    "sample.order": Range("[]", 2, 3),
    "sample.s_churn": NOT_NEGATIVE,
    "sample.s_min": NOT_NEGATIVE,
    "sample.s_max": NOT_NEGATIVE,
    "sample.s_noise": POSITIVE,
    "sample.corrector_snr": POSITIVE,
    "sample.num_corrections": NOT_NEGATIVE,
    "sample.num_steps": NOT_NEGATIVE,
    "sample.rho": POSITIVE,
    "sample.dynamic_threshold": FRACTION,
    "sample.clip_latents": NOT_NEGATIVE,
    "sample.guidance": NOT_NEGATIVE,
    "sample.guidance_interval": NOT_NEGATIVE,
    "sample.guidance_rescale": FRACTION,
    "sample.chunk_size": COUNT,
    "eval.every": NOT_NEGATIVE,
    "eval.num_examples": COUNT,
    "eval.samples_every": NOT_NEGATIVE,
    "eval.num_samples": COUNT,
    "eval.num_seeds": COUNT,
    "eval.num_steps": COUNT,
    "eval.bound_images": NOT_NEGATIVE,
    "eval.bound_terms": COUNT,
    "eval.ode_tolerance": POSITIVE,
    "mesh.data": Range("[)", -1),
    "mesh.fsdp": COUNT,
}
NAMES = {int: "a whole number", float: "a number", bool: "True or False", str: "a string"}


def check_ranges(flat: Mapping[str, Any], ranges: Mapping[str, Range] = RANGES) -> None:
    """Check that every number of a config is in its range, also when rounded to float32.

    Args:
      flat: the config as `config.flatten` returns it, {"section.field": value}.
      ranges: the range of each number, by the same keys.

    Raises:
      UserError: a number is outside of its range; the message names the range.
    """
    for key, allowed in ranges.items():
        whole = flat[key]
        for value in whole if isinstance(whole, tuple) else (whole,):
            rounded = _as_float32(value) if isinstance(value, float) else value
            if value in allowed and rounded in allowed and abs(rounded) < math.inf:
                continue
            entries = ", each entry" if isinstance(whole, tuple) else ""
            where = f" in {whole}" if entries else ""
            if value in allowed and rounded != value:
                where = f", which is {rounded:g} in float32"
            raise UserError(f"config.{key}{entries} must be {allowed}, found {value}{where}")


def _as_float32(value: float) -> float:
    """Return the value in float32, where numbers next to 0 are 0, as for XLA."""
    with np.errstate(over="ignore"):
        rounded = np.float32(value)
    return 0.0 if abs(rounded) < np.finfo(np.float32).tiny else float(rounded)


def check_section(
    name: str, kind: Callable[..., Any], mapping: Mapping[str, Any], ranges: Mapping[str, Range]
) -> Any:
    """Return a checked section of a config: a frozen dataclass.

    Args:
      name: the name of the section.
      kind: the dataclass; fields that are absent in the mapping keep their defaults.
      mapping: {field: value}.
      ranges: the range of each number, {"section.field": range}.

    Raises:
      UserError: an unknown field, a value of the wrong type, or a number out of its range.
    """
    hints, values = typing.get_type_hints(kind), {}
    for field, value in mapping.items():
        if field not in hints:
            raise unknown("config key", f"{name}.{field}", [f"{name}.{h}" for h in hints])
        values[field] = check_type(f"{name}.{field}", value, hints[field])
    section = kind(**values)
    check_ranges({f"{name}.{field}": getattr(section, field) for field in hints}, ranges)
    return section


def check_type(key: str, value: Any, hint: Any) -> Any:
    """Return `value` in the type of its field: an int becomes a float, a list becomes a tuple.

    Args:
      key: the name of the field, "section.field", for the message.
      value: the value found.
      hint: the type of the field: int, float, bool, str, tuple[int, ...] or tuple[float, ...].

    Raises:
      UserError: the value has another type.
    """
    if typing.get_origin(hint) is tuple:  # JSON has lists in place of tuples
        kind = typing.get_args(hint)[0]
        if isinstance(value, (list, tuple)) and all(type(v) in (int, kind) for v in value):
            return tuple(map(kind, value))
        what = "integers such as (1, 2)" if kind is int else "numbers such as (0.5, 1.0)"
        raise UserError(f"config.{key} must be a tuple of {what}, found {value!r}")
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise UserError(f"config.{key} must be {NAMES[hint]}, found {value!r}")
    return value


class Choice(NamedTuple):
    """A row of a table in `build/`: the meaning of a name in a config.

    Attributes:
      build: builds it from the config.
      options: the fields of the same section that only some rows of the table use, this one too.
    """

    build: Callable[..., Any]
    options: tuple[str, ...] = ()


def choose(table: Mapping[str, Choice], config: Any, field: str) -> Callable[..., Any]:
    """Return the builder that a field of a section names.

    Args:
      table: name -> row.
      config: the section, such as `config.process`.
      field: such as "schedule".

    Raises:
      UserError: no such name, or an option is set that only other rows use.
    """
    name = getattr(config, field)
    chosen = look_up(table, f"{_section(config)}.{field}", name)
    users: dict[str, list[str]] = {}
    for other, row in table.items():
        for option in row.options:
            users.setdefault(option, []).append(other)
    for option, names in users.items():
        if option not in chosen.options:
            who = f"{_section(config)}.{field}={name}"
            check_unused(config, [option], who, f" ({', '.join(names)}: yes)")
    return chosen.build


def check_unused(config: Any, options: Iterable[str], who: str, users: str = "") -> None:
    """Refuse options of a section that are set although nothing uses them.

    Args:
      config: the section, such as `config.loss`.
      options: names of its fields.
      who: what does not use them, for the message.
      users: what does, in brackets, if there is a list.

    Raises:
      UserError: an option is not at its default.
    """
    for name in options:
        value, default = getattr(config, name), getattr(type(config), name)
        if value != default:
            raise UserError(
                f"{_section(config)}.{name} is {value!r}, but {who} does not use it{users}; "
                f"leave it at {default!r}"
            )


def _section(config: Any) -> str:
    """Return the key of a section: "loss" for a `LossConfig`."""
    return type(config).__name__.removesuffix("Config").lower()
