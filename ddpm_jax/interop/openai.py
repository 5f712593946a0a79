"""Runs from OpenAI's improved-diffusion and guided-diffusion: a .pt file and its flags.

A file holds only weights. Its options are the flags of the scripts that train and sample it. So the
flags are given as their READMEs print them, or by the name of a published file (`PUBLISHED`):

    github.com/openai/improved-diffusion  README.md, "Models and Hyperparameters"  (1bc7bbb)
    github.com/openai/guided-diffusion    README.md, "Sampling from pre-trained models"  (22e0df8)
"""

import os
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from ddpm_jax.config import Config, ModelConfig, ProcessConfig, SampleConfig
from ddpm_jax.errors import UserError, look_up, unknown
from ddpm_jax.interop.imported import Chain, make_run
from ddpm_jax.pretrained import openai_unet
from ddpm_jax.pretrained.unet_2d import Network
from ddpm_jax.runs import Run
from ddpm_jax.runtime.files import absolute

NUM_CLASSES = 1000
GUIDED, IMPROVED, CLASSIFIER = "guided-diffusion", "improved-diffusion", "classifier"
DIFFUSION: Mapping[str, Any] = {
    "learn_sigma": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "timestep_respacing": "",
    "use_kl": False,
    "predict_xstart": False,
    "rescale_timesteps": False,
    "rescale_learned_sigmas": False,
    "use_ddim": False,  # of the scripts that sample
    "clip_denoised": True,
}
MODEL: Mapping[str, Any] = {
    "image_size": 64,
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "attention_resolutions": "16,8",
    "dropout": 0.0,
    "class_cond": False,
    "use_checkpoint": False,
    "use_scale_shift_norm": True,
}
ONLY_GUIDED: Mapping[str, Any] = {
    "num_head_channels": -1,
    "channel_mult": "",
    "resblock_updown": False,
    "use_fp16": False,
    "use_new_attention_order": False,
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {  # script_util.py of the two repositories
    GUIDED: {**DIFFUSION, **MODEL, **ONLY_GUIDED},
    IMPROVED: {
        **DIFFUSION,
        **MODEL,
        "sigma_small": False,
        "rescale_timesteps": True,
        "rescale_learned_sigmas": True,
    },
    CLASSIFIER: {
        **DIFFUSION,
        "image_size": 64,
        "classifier_use_fp16": False,
        "classifier_width": 128,
        "classifier_depth": 2,
        "classifier_attention_resolutions": "32,16,8",
        "classifier_use_scale_shift_norm": True,
        "classifier_resblock_updown": True,
        "classifier_pool": "attention",
    },
}
MULTIPLIERS: Mapping[int, tuple[float, ...]] = {  # image_size -> channel_mult
    32: (1, 2, 2, 2),
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}
SCHEDULES = ("linear", "cosine")


class Published(NamedTuple):
    """A published file.

    Attributes:
      code: the code that trained it: a key of `DEFAULTS`.
      flags: the flags of its README.
    """

    code: str
    flags: str


_ATTENTION = "--attention_resolutions 32,16,8"
_LEARNS = "--diffusion_steps 1000 --learn_sigma True"
_BLOCKS = "--resblock_updown True --use_fp16 True --use_scale_shift_norm True"
_WIDE = f"{_ATTENTION} {_LEARNS} --noise_schedule linear --num_channels 256 --num_res_blocks 2"
_256 = f"{_WIDE} --image_size 256 --num_head_channels 64 {_BLOCKS}"
_LSUN = f"{_256} --class_cond False --dropout 0.1"
_4000 = "--diffusion_steps 4000 --noise_schedule cosine"
_IMAGENET = f"--image_size 64 --num_channels 128 --num_res_blocks 3 --learn_sigma True {_4000}"
_CIFAR = f"--image_size 32 --num_channels 128 --num_res_blocks 3 --learn_sigma True {_4000}"
_BEDROOM = (
    "--image_size 256 --num_channels 128 --num_res_blocks 2 --num_heads 1 --learn_sigma True "
    "--use_scale_shift_norm False --attention_resolutions 16 --diffusion_steps 1000 "
    "--noise_schedule linear --rescale_learned_sigmas False --rescale_timesteps False"
)
PUBLISHED: Mapping[str, Published] = {  # name of the file without .pt
    "64x64_diffusion": Published(
        GUIDED,
        f"{_ATTENTION} {_LEARNS} --class_cond True --dropout 0.1 --image_size 64 --noise_schedule "
        f"cosine --num_channels 192 --num_head_channels 64 --num_res_blocks 3 {_BLOCKS} "
        "--use_new_attention_order True",
    ),
    "128x128_diffusion": Published(
        GUIDED, f"{_WIDE} --class_cond True --image_size 128 --num_heads 4 {_BLOCKS}"
    ),
    "256x256_diffusion": Published(GUIDED, f"{_256} --class_cond True"),
    "256x256_diffusion_uncond": Published(GUIDED, f"{_256} --class_cond False"),
    "512x512_diffusion": Published(
        GUIDED, f"{_WIDE} --class_cond True --image_size 512 --num_head_channels 64 {_BLOCKS}"
    ),
    "lsun_bedroom": Published(GUIDED, _LSUN),
    "lsun_cat": Published(GUIDED, _LSUN),
    "lsun_horse": Published(GUIDED, _LSUN),
    "lsun_horse_nodropout": Published(GUIDED, f"{_LSUN} --dropout 0.0"),
    "64x64_classifier": Published(
        CLASSIFIER, "--image_size 64 --classifier_depth 4 --noise_schedule cosine"
    ),
    "128x128_classifier": Published(CLASSIFIER, "--image_size 128"),
    "256x256_classifier": Published(CLASSIFIER, "--image_size 256"),
    "512x512_classifier": Published(CLASSIFIER, "--image_size 512"),
    "imagenet64_uncond_100M_1500K": Published(IMPROVED, _IMAGENET),
    "imagenet64_uncond_vlb_100M_1500K": Published(IMPROVED, f"{_IMAGENET} --use_kl True"),
    "imagenet64_cond_270M_250K": Published(
        IMPROVED,
        "--image_size 64 --num_channels 192 --num_res_blocks 3 --learn_sigma True --class_cond "
        f"True {_4000} --rescale_learned_sigmas False --rescale_timesteps False",
    ),
    "cifar10_uncond_50M_500K": Published(IMPROVED, f"{_CIFAR} --dropout 0.3"),
    "cifar10_uncond_vlb_50M_500K": Published(IMPROVED, f"{_CIFAR} --dropout 0.3 --use_kl True"),
    "lsun_uncond_100M_1200K_bs128": Published(IMPROVED, _BEDROOM),
    "lsun_uncond_100M_2400K_bs64": Published(IMPROVED, _BEDROOM),
}
UPSAMPLERS = ("64_256_upsampler", "128_512_upsampler", "upsample_cond_500K")


def from_openai(
    path: str | os.PathLike,
    flags: str | Mapping[str, Any] | None = None,
    *,
    code: str = "",
    config: Config | None = None,
) -> Run:
    """Read a model or a classifier of OpenAI as a run.

        run = from_openai("models/256x256_diffusion_uncond.pt")
        images = run.sample_fn()(run.params, jax.random.key(0), 4)

    The weights and the computation are float32, also if their flag use_fp16 is set. The flags
    use_checkpoint, use_kl and rescale_learned_sigmas belong to their training and change nothing.

    Args:
      path: a state_dict that `torch.save` wrote.
      flags: the flags of their scripts, such as "--image_size 64 --num_channels 192", or {name:
        value}. With `code` "" they change those of the published file. None is no change.
      code: "guided-diffusion", "improved-diffusion", or "classifier" for guided-diffusion's
        classifier: the code that trained the file. "" is a published file, known by its name.
      config: what the flags do not say, as in `from_diffusers`.

    Raises:
      UserError: the file cannot be read, or is not a published one and `code` is ""; a flag is
        unknown, has a wrong value, or cannot be represented; a weight is missing, left over, or of
        another shape.
    """
    file = absolute(path)
    code, options = _options(file, flags, code)
    network, legacy = _network(code, options)
    chain = _chain(options)
    return make_run(
        network,
        chain,
        lambda abstract: openai_unet.read_params(file, abstract, network.model, legacy=legacy),
        config,
    )


def _options(
    file: pathlib.Path, flags: str | Mapping[str, Any] | None, code: str
) -> tuple[str, dict[str, Any]]:
    """Return the code and the value of every flag."""
    if file.stem in UPSAMPLERS and not code:
        raise UserError(
            f"{file.name} is an upsampler, which cannot be represented: it receives a small image "
            "that is enlarged bilinearly; sample a larger model instead"
        )
    own: dict[str, Any] = {}
    if not code:
        if file.stem not in PUBLISHED:
            raise UserError(
                f"{file.name} is not the name of a published file ({', '.join(PUBLISHED)}); pass "
                "the code that trained it and its flags"
            )
        code, published = PUBLISHED[file.stem]
        own = _parsed(published)
    defaults = look_up(DEFAULTS, "code", code)
    options = dict(defaults)
    for name, value in {**own, **_parsed(flags or {})}.items():
        if name not in defaults:
            raise unknown(f"flag of {code}:", name, defaults)
        options[name] = _value(name, value, defaults[name])
    return code, options


def _parsed(flags: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return {name: value} of flags "--name value" or "--name=value"."""
    if not isinstance(flags, str):
        return dict(flags)
    words, found = shlex.split(flags), {}
    while words:
        name, equals, value = words.pop(0).partition("=")
        if not name.startswith("--") or not (equals or words):
            raise UserError(f"flags must be --name value or --name=value, found {name!r}")
        found[name[2:]] = value if equals else words.pop(0)
    return found


def _value(name: str, value: Any, default: Any) -> Any:
    """Return the value of a flag in the type of its default."""
    kind = type(default)
    if isinstance(value, str) and kind is not str:
        words = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}
        try:
            value = words[value.lower()] if kind is bool else kind(value)
        except (KeyError, ValueError):
            pass  # its type is still str
    value = float(value) if kind is float and type(value) is int else value
    if type(value) is not kind:
        names = {bool: "True or False", int: "a whole number", float: "a number", str: "a string"}
        raise UserError(f"--{name} must be {names[kind]}, found {value!r}")
    return value


def _network(code: str, options: Mapping[str, Any]) -> tuple[Network, bool]:
    """Return the network, and whether q, k and v have the legacy order."""
    size, T = options["image_size"], options["diffusion_steps"]
    judges = code == CLASSIFIER
    if judges:
        options = {name.removeprefix("classifier_"): value for name, value in options.items()}
        sizes = {"num_channels": options["width"], "num_res_blocks": options["depth"]}
        options = {**MODEL, **options, **sizes, "num_head_channels": 64, "class_cond": False}
        if options["pool"] not in ("attention", "adaptive"):
            raise _refuse("classifier_pool", options["pool"], "only attention or adaptive can")
    options = {**ONLY_GUIDED, **options}
    heads, head_dim = options["num_heads"], max(options["num_head_channels"], 0)
    if not head_dim and options["num_heads_upsample"] not in (-1, heads):
        allowed = "all levels must have the same number of heads"
        raise _refuse("num_heads_upsample", options["num_heads_upsample"], allowed)
    multipliers = _multipliers(code, size, options["channel_mult"])
    time_channels = options["num_channels"]
    first = multipliers[0] if code != IMPROVED else 1  # their first convolution
    channels = int(time_channels * first)
    relative = [m / first for m in multipliers]
    if channels < 1 or any(int(m) != m for m in relative):
        allowed = "each must be a multiple of the first"
        raise _refuse("channel_mult", options["channel_mult"], allowed)
    model = ModelConfig(
        name="classifier" if judges else "unet",
        channels=channels,
        channel_multipliers=tuple(map(int, relative)),
        num_res_blocks=options["num_res_blocks"],
        attention_resolutions=_resolutions(options["attention_resolutions"], size, multipliers),
        num_heads=1 if head_dim else heads,
        head_dim=head_dim,
        dropout=options["dropout"],
        norm_eps=1e-5,
        scale_shift=options["use_scale_shift_norm"],
        freq_shift=0,
        time_channels=0 if time_channels == channels else time_channels,
        time_scale=1000 / max(T, 1) if options["rescale_timesteps"] else 1.0,
        resample="residual" if options["resblock_updown"] else "conv_symmetric",
        class_conditional=options["class_cond"],
        null_class=not options["class_cond"],
        learn_variance=options["learn_sigma"] and not judges,
        pool="attention" if judges and options["pool"] == "attention" else "mean",
    )
    num_classes = NUM_CLASSES if judges or options["class_cond"] else 0
    return Network(model, (size, size, 3), num_classes), not options["use_new_attention_order"]


def _multipliers(code: str, size: int, given: str) -> tuple[float, ...]:
    if given:
        return tuple(map(float, _numbers("channel_mult", given)))
    known = (32, 64, 256) if code == IMPROVED else (64, 128, 256, 512)
    if size not in known:
        allowed = f"{code} knows the sizes {', '.join(map(str, known))}"
        raise _refuse("image_size", size, allowed)
    return MULTIPLIERS[size]


def _resolutions(text: str, size: int, multipliers: tuple[float, ...]) -> tuple[int, ...]:
    """Return the heights of the levels with attention; they ignore a size that no level has."""
    numbers = _numbers("attention_resolutions", text)
    wanted = {size // number for number in numbers}  # factors of downsampling
    return tuple(size >> level for level in range(len(multipliers)) if 1 << level in wanted)


def _numbers(name: str, text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise UserError(f"--{name} must be whole numbers such as 32,16,8, found {text!r}")
    return found


def _chain(options: Mapping[str, Any]) -> Chain:
    """Return the process and the sampler."""
    schedule, T = options["noise_schedule"], options["diffusion_steps"]
    if schedule not in SCHEDULES:
        raise _refuse("noise_schedule", schedule, f"only {' or '.join(SCHEDULES)} can")
    num_steps, grid = _respacing(options["timestep_respacing"], T)
    sample = SampleConfig(
        sampler="ddim" if options["use_ddim"] else "ancestral",
        num_steps=num_steps,
        timesteps=grid,
        clip_x_0=options["clip_denoised"],
        variance=SampleConfig.variance if options["use_ddim"] else _variance(options),
    )
    kind = "x_0" if options["predict_xstart"] else "eps"
    return Chain(ProcessConfig(schedule, T), kind, sample)


def _variance(options: Mapping[str, Any]) -> str:
    if options["learn_sigma"]:
        return "learned_range"
    return "fixed_small" if options.get("sigma_small") else "fixed_large"


def _respacing(text: str, T: int) -> tuple[int, str]:
    """Return sample.num_steps and sample.timesteps of their timestep_respacing."""
    ddim, number = text.startswith("ddim"), text.removeprefix("ddim")
    if not text:
        return 0, "uniform"
    if not number.isdecimal() or not 1 <= int(number) <= T:
        allowed = f"only N or ddimN can, with N in 1..{T}: all sections have the same spacing here"
        raise _refuse("timestep_respacing", text, allowed)
    if ddim and T % int(number):
        raise _refuse("timestep_respacing", text, f"N must divide diffusion_steps = {T}")
    return int(number), "leading" if ddim else "uniform"


def _refuse(name: str, value: Any, allowed: str) -> UserError:
    return UserError(f"--{name} {value} cannot be represented; {allowed}")
