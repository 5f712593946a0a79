"""The configuration of a run: frozen dataclasses, and the only place where defaults live.

The defaults are the CIFAR-10 recipe of Ho et al. 2020 (section 4 and appendix B). A config file in
`experiments/` starts from them and changes what its experiment changes; `from_dict` turns the
edited mapping (an `ml_collections.ConfigDict`, or the JSON beside a checkpoint) back into a checked
`Config`, so that a misspelled key or a value of the wrong type is an error that names the key.
Names such as a schedule's are rows of a table; a wrong one is an error that lists all of them.
"""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from ddpm_jax.config_checks import check_ranges, check_type
from ddpm_jax.errors import unknown


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images, from where, at which size."""

    name: str = "cifar10"  # of BUILDERS in data/datasets.py, or of a set that TFDS has prepared
    path: str = ""  # folder only: the directory of images; class sub-folders give labels
    data_dir: str = ""  # where prepared sets lie; "" is TFDS's own default, ~/tensorflow_datasets
    manual_dir: str = ""  # of archives placed by hand; "" is <data_dir>/downloads/manual
    train_split: str = "train"
    test_split: str = "test"  # held-out images; "" for none
    holdout: float = 0.05  # folder only: the part held out as the test split
    image_size: int = 0  # square side in pixels; 0 is the set's own (emoji: 32, folder: none)
    channels: int = 0  # 1 grey, 3 RGB, 4 RGBA; 0 is the set's own (emoji: 3, folder: none)
    crop: str = "center"  # to image_size: "center" (shorter side to it, centre crop) or "stretch"
    flip: bool = True  # random horizontal flips of the training images
    follow_links: bool = False  # folder: also links in it that lead to images outside of it
    on_bad_image: str = "refuse"  # folder: "refuse" an unreadable image, or "skip" and name it
    font_path: str = ""  # emoji: NotoColorEmoji.ttf; "" looks where Debian puts it
    emoji_test_path: str = ""  # emoji: Unicode's emoji-test.txt; "" looks where Debian puts it
    skin_tones: bool = True  # emoji: keep the skin-tone variants (3,641 images; 1,861 without)
    text: bool = False  # emoji: batches carry the names, encoded by all-MiniLM-L6-v2
    ram_limit_gb: float = 8.0  # sets smaller than this, decoded, are held in RAM
    timeout_s: float = 600.0  # a batch that takes longer stops the run, its state saved; 0: never


@dataclasses.dataclass(frozen=True)
class ProcessConfig:
    """The forward process q."""

    schedule: str = "linear"  # of SCHEDULES in build/processes.py, or learned (as in VDM)
    num_timesteps: int = 1000  # T
    beta_1: float = 0.0  # first beta; 0 is the schedule's own, 1e-4 * 1000 / T
    beta_T: float = 0.0  # last beta; 0 is the schedule's own, 0.02 * 1000 / T
    zero_terminal_snr: bool = False  # rescale so that alpha_bar_T = 0 (Lin et al. 2023)
    gamma_min: float = -13.3  # learned: minus the log-SNR at t = 1, where its training begins ...
    gamma_max: float = 5.0  # ... and at t = T


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The U-Net (Ho et al. 2020, appendix B)."""

    name: str = "unet"  # unet; classifier, its way down (experiments.train_classifier)
    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)  # image heights at which blocks attend
    num_heads: int = 1
    dropout: float = 0.1
    num_groups: int = 32  # of GroupNorm
    scale_shift: bool = False  # FiLM: the time embedding scales and shifts (Dhariwal & Nichol 2021)
    class_conditional: bool = False  # labels of the data set, with a learned null class
    embedding_dim: int = 0  # width of a vector per image (384 for data.text), with a learned null
    context_dim: int = 0  # width of a sequence to attend to (384 for data.text), with a null too
    super_resolution: int = 0  # factor: the network sees the image that much coarser; 0 is off
    dtype: str = "float32"  # of the computation: float32 or bfloat16; parameters are float32
    remat: bool = False  # recompute the blocks' activations in the backward pass to save memory ...
    remat_keep: str = "nothing"  # ... but keep: nothing, convolutions (and products)
    fourier_features: tuple[int, ...] = ()  # n of sin and cos(2^n pi x_t) shown to the network
    learn_variance: bool = False  # twice the output channels; see sample.variance, loss.objective


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What the network predicts and how its error is weighted."""

    kind: str = "eps"  # eps, x_0, v
    weighting: str = "simple"  # of WEIGHTINGS in build/loss.py
    objective: str = "simple"  # simple; with learn_variance hybrid or vlb, the bound in bits/dim
    vlb_lambda: float = 1e-3  # hybrid: weight of the bound
    t_sampler: str = "uniform"  # of TIME_SAMPLERS in build/loss.py; loss_second_moment is for vlb
    min_snr_gamma: float = 5.0
    p2_k: float = 1.0
    p2_gamma: float = 1.0
    p_uncond: float = 0.1  # conditional only: how often label, embedding and context become null


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimiser and the average of its iterates."""

    name: str = "adam"  # adam, adamw
    learning_rate: float = 2e-4
    warmup_steps: int = 5000  # linear, from 0
    decay: str = "constant"  # constant, cosine (to 0 at train.num_steps)
    clip_norm: float = 1.0  # global norm of the gradient; 0 is off
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0  # adamw only
    ema_decay: float = 0.9999
    ema_warmup: bool = True  # decay min(ema_decay, (1 + n) / (10 + n)) at step n
    max_nonfinite: int = 20  # stop after so many non-finite updates in a row


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    num_steps: int = 800_000
    batch_size: int = 128  # over all devices and processes
    seed: int = 0
    steps_per_call: int = 0  # steps fused into one compiled call; 0 is 1 on CPU, 10 elsewhere
    accumulate: int = 1  # micro-batches a step, to fit a batch that does not fit
    log_every: int = 100
    sample_every: int = 10_000  # sample grids, of EMA and raw weights; 0 is only at the end
    num_samples: int = 64  # in a grid
    checkpoint_every: int = 5000
    keep_last: int = 2  # checkpoints kept: the last so many ...
    keep_every: int = 100_000  # ... and every one at a multiple of this; 0 is none


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """How images are drawn, while training and by `ddpm_jax.load`."""

    # of SAMPLERS in build/sampling.py; an option that it does not use must stay at its default
    sampler: str = "ancestral"
    # ancestral, predictor_corrector: fixed_large, fixed_small; with learn_variance learned_range
    variance: str = "fixed_large"
    eta: float = 0.0  # ddim: noise, in [0, 1]
    order: int = 2  # unipc: 2 or 3
    stochastic: bool = False  # dpm_solver_pp_2m: solve the SDE
    s_churn: float = 0.0  # euler, heun: churn over the whole chain (Karras et al. 2022, table 5)
    s_min: float = 0.0  # euler, heun: churn where s_min <= sigma_t/alpha_t <= s_max alone ...
    s_max: float = 0.0  # ... and 0 is no upper limit
    s_noise: float = 1.0  # euler, heun: scale of the churn's noise
    corrector_snr: float = 0.16  # predictor_corrector: size of a Langevin step
    num_corrections: int = 1  # predictor_corrector: Langevin steps at each timestep
    num_steps: int = 0  # steps, one network evaluation each for most samplers; 0 is all T
    timesteps: str = "uniform"  # of GRIDS in build/sampling.py
    rho: float = 7.0  # karras: larger is denser towards 0
    clip_x_0: bool = True
    dynamic_threshold: float = 0.0  # clip to this percentile of |x_0|, e.g. 0.995; 0 is to [-1, 1]
    guidance: float = 0.0  # classifier-free weight w (other codes' scale is 1 + w); 0 is off
    guidance_interval: tuple[int, ...] = ()  # (low, high) timesteps at which to guide; () is all
    guidance_rescale: float = 0.0  # 0..1, brings the deviation of a guided x_0 back; 0 is off
    chunk_size: int = 256  # images on the device at once


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """The held-out loss and the quality of samples, while training and by experiments.evaluate."""

    every: int = 5000  # steps between held-out losses; 0 is never
    num_examples: int = 1024  # held-out images, the same ones with the same noise each time
    samples_every: int = 0  # steps between Fréchet distances of samples; 0 is never
    num_samples: int = 1000  # images of such a distance; part of its name
    num_seeds: int = 3  # experiments.evaluate: so many times so many images
    sampler: str = "dpm_solver_pp_2m"  # for both: a fast one, not the run's own
    num_steps: int = 20
    timesteps: str = "trailing"
    bound_images: int = (
        1024  # experiments.evaluate: images of each split whose bits/dim are bounded
    )
    bound_terms: int = 100  # of the T terms of the bound, for each of these images
    ode_tolerance: float = 1e-4  # of experiments.evaluate --ode


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The devices: data x fsdp of them share the batch."""

    data: int = -1  # groups of devices, each of which holds the whole state; -1 is as many as fit
    fsdp: int = 1  # devices of a group, among which the state is cut


@dataclasses.dataclass(frozen=True)
class Config:
    """One run, whole."""

    data: DataConfig = DataConfig()
    process: ProcessConfig = ProcessConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()
    eval: EvalConfig = EvalConfig()
    mesh: MeshConfig = MeshConfig()


def from_dict(mapping: Mapping[str, Any]) -> Config:
    """Build the checked `Config` from a mapping of sections to mappings of fields.

    Sections and fields that are absent keep their defaults. Raises `UserError` for an unknown
    section or field (naming the nearest right one) and for a value of the wrong type.
    """
    sections = typing.get_type_hints(Config)
    built = {}
    for section, fields in mapping.items():
        if section not in sections:
            raise unknown("config section", section, sections)
        hints = typing.get_type_hints(sections[section])
        values = {}
        for name, value in fields.items():
            if name not in hints:
                raise unknown("config key", f"{section}.{name}", [f"{section}.{h}" for h in hints])
            values[name] = check_type(f"{section}.{name}", value, hints[name])
        built[section] = sections[section](**values)
    config = Config(**built)
    check_ranges(flatten(config))
    return config


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """Return the config as nested dictionaries, the inverse of `from_dict`."""
    return dataclasses.asdict(config)


def flatten(config: Config) -> dict[str, Any]:
    """Return `{"section.field": value}` of every field."""
    return {
        f"{section}.{name}": value
        for section, fields in to_dict(config).items()
        for name, value in fields.items()
    }
