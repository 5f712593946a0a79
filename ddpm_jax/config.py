"""The configuration of a run: frozen dataclasses, and the only place where defaults live.

The defaults are the CIFAR-10 recipe of Ho et al. 2020 (section 4 and appendix B). A config file in
`experiments/` starts from the defaults and edits some of them in an `ml_collections.ConfigDict`.
`from_dict` turns this mapping, or the JSON file of a run, into a checked `Config`. A misspelled key
or a value of the wrong type is an error that names the key. Names, such as that of a schedule, are
rows of a table; a wrong name is an error that lists all of them.

In a comment, a word before a colon says when the field is used: "ddim: ..." is for that sampler.
"""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from ddpm_jax.config_checks import check_ranges, check_type
from ddpm_jax.errors import unknown


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data set: its name, its files, its splits and the format of its images."""

    # a row of BUILDERS in data/datasets.py; array: images in an .npz file; or the name of any TFDS
    # set that is already prepared in data_dir
    name: str = "cifar10"
    # folder: directory of the images; class sub-folders become labels. array: .npz file with images
    # (uint8 [N, H, W, C] or [N, H, W]) and, optionally, labels (integers [N]). srn: directory of
    # renderings with cameras in the layout of Scene Representation Networks
    path: str = ""
    data_dir: str = ""  # directory of prepared sets; "" is TFDS's default, ~/tensorflow_datasets
    # directory of archives that you downloaded by hand; "" is <data_dir>/downloads/manual
    manual_dir: str = ""
    train_split: str = "train"  # name of the split to train on
    test_split: str = "test"  # name of the split of held-out images; "" is none
    # folder and array: fraction of the images that become the test split, in [0, 1)
    holdout: float = 0.05
    # height and width of the images in pixels; 0 keeps the size of the data set, which is 32 for
    # emoji and solids; folder has none, so it must be set
    image_size: int = 0
    # 1 grey, 3 RGB, 4 RGBA; 0 keeps the channels of the data set, which are 3 for emoji; folder has
    # none, so it must be set
    channels: int = 0
    # how an image becomes image_size x image_size. center: scale its shorter side to image_size and
    # cut out the middle. stretch: scale both sides to image_size. pad: center the image on a black
    # canvas without scaling
    crop: str = "center"
    flip: bool = True  # flip training images left to right at random, half of the time
    # folder only: also read images through symbolic links that lead out of the directory
    follow_links: bool = False
    # folder only, for an image that cannot be read. refuse: stop with an error. skip: leave the
    # image out and print its name
    on_bad_image: str = "refuse"
    # folder only: pixels (width times height) that an image may have. A larger one could fill the
    # memory, so it counts as an image that cannot be read
    max_pixels: int = 178_956_970
    # emoji only: file of the font NotoColorEmoji.ttf; "" is the path that Debian uses
    font_path: str = ""
    # emoji only: file of Unicode's list emoji-test.txt; "" is the path that Debian uses
    emoji_test_path: str = ""
    skin_tones: bool = True  # emoji only: keep skin-tone variants (3,641 images; 1,861 without)
    # solids only: objects of each class in the split train; a tenth as many, at least 4, in test
    objects_per_class: int = 100
    views_per_object: int = 16  # solids only: images of each object, from different cameras
    # solids only: the label also names the view, such as "chair, front 0-45 low" (its azimuth is 0
    # to 45 degrees); for a quarter of the images the view is hidden, so their label is "chair"
    view_labels: bool = False
    # keep fewer training images of each later class, so that the first class has this many times as
    # many as the last (Cui et al. 2019); 1 keeps all
    imbalance: float = 1.0
    # training images that the first class keeps at most, and, with data.imbalance=1, every class;
    # 0 is as many as the smallest class has
    max_per_class: int = 0
    # work directory of a trained autoencoder: diffusion runs on its latents instead of pixels
    # (Rombach et al. 2022). A directory of diffusers' AutoencoderKL works too. "" is pixels
    codec: str = ""
    # batches also contain the names of the images, encoded by all-MiniLM-L6-v2; for emoji, or
    # another set that has a text feature "name"
    text: bool = False
    # resume a run although its data set has changed, such as by an image that is new or replaced
    allow_changed: bool = False
    # gigabytes (10^9 bytes). A data set of at most this size, decoded, is held in RAM; a larger one
    # is read from the disk
    ram_limit_gb: float = 8.0
    # seconds to wait for a batch. If a batch takes longer, the run saves its state and stops; 0
    # waits forever
    timeout_s: float = 600.0


@dataclasses.dataclass(frozen=True)
class ProcessConfig:
    """The forward process q, which adds noise to an image in T timesteps."""

    # a row of SCHEDULES in build/processes.py, or learned: trained with the network (Kingma et al.
    # 2021)
    schedule: str = "linear"
    num_timesteps: int = 1000  # T, the number of timesteps of the forward process, at least 1
    # linear, quadratic, sigmoid: beta at t = 1, in (0, 1); 0 is the default, 1e-4 * 1000 / T
    beta_1: float = 0.0
    # linear, quadratic, sigmoid, constant: beta at t = T, in (0, 1); 0 is the default,
    # 0.02 * 1000 / T
    beta_T: float = 0.0
    # rescale the betas so that alpha_bar_T = 0 (Lin et al. 2023); not with loss.kind=eps
    zero_terminal_snr: bool = False
    # learned: minus the log-SNR at t = 1 and at t = T before training (it learns both). The network
    # receives the noise level on the scale of these two numbers, in place of t
    gamma_min: float = -13.3
    gamma_max: float = 5.0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network: the U-Net of Ho et al. 2020 (appendix B) and its extensions."""

    # unet; xunet: draws an object as another camera sees it, from one view (Watson et al. 2022),
    # for data with cameras; classifier: only the downsampling half of the U-Net, for
    # experiments.train_classifier; autoencoder: images to latents and back, for data.codec of other
    # runs
    name: str = "unet"
    channels: int = 128  # channels of the first level
    # channels of each level, in multiples of model.channels; each level halves height and width
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 2)
    # side in pixels of the square patches that the first level sees as one pixel: patches of 2 make
    # the network about four times as cheap (Hoogeboom et al. 2023); 1 is none
    patch_size: int = 1
    num_res_blocks: int = 2  # residual blocks per level on the way down; one more on the way up
    # heights of the levels that have self-attention, after patches; () is only the middle of the
    # U-Net
    attention_resolutions: tuple[int, ...] = (16,)
    num_heads: int = 1  # heads of each attention
    # channels per head, in place of num_heads: a wider level has more heads (Dhariwal & Nichol
    # 2021); 0 uses num_heads
    head_dim: int = 0
    # self-attention in the middle of the U-Net. normalised: after a GroupNorm, as at the levels.
    # plain: without the GroupNorm, as in diffusers' networks with scale_shift. none: no attention
    middle_attention: str = "normalised"
    dropout: float = 0.1  # dropout rate in the residual blocks during training, in [0, 1)
    num_groups: int = 32  # groups of each GroupNorm; must divide the channels of each level
    norm_eps: float = 1e-6  # epsilon of each GroupNorm, added to the variance
    # True: the time embedding scales and shifts the features (FiLM; Dhariwal & Nichol 2021).
    # False: it is added to them (Ho et al. 2020)
    scale_shift: bool = False
    # 1 or 0: the time t is embedded as sines and cosines with the frequencies
    # 10000^(-i / (time_channels / 2 - freq_shift)). 1: as in Ho et al.'s code. 0: as in diffusers'
    freq_shift: int = 1
    # number of these sines and cosines, even; the embedding is four times as wide. 0 is
    # model.channels
    time_channels: int = 0
    # the network embeds t times this number, such as 0.25 to receive 0..1000 although T = 4000
    # (Nichol & Dhariwal 2021)
    time_scale: float = 1.0
    # how height and width are halved and doubled between levels. conv: a convolution of stride 2
    # that pads only the bottom and the right (Ho et al. 2020); pixels repeated, then a convolution.
    # conv_symmetric: the same, but padded on all sides. residual: residual blocks that average or
    # repeat pixels (Dhariwal & Nichol 2021)
    resample: str = "conv"
    class_conditional: bool = False  # the network receives the label, or a learned null class
    # class_conditional: there is a null class, for images without a label. False: each image needs
    # a label, so loss.p_uncond must be 0 and guidance is impossible
    null_class: bool = True
    # width of one vector per image that the network receives (384 for data.text); 0 is none
    embedding_dim: int = 0
    # width of a sequence of vectors per image that the network attends to (384 for data.text); 0 is
    # none
    context_dim: int = 0
    # the network also receives the image, made coarser by this factor, at least 2; 0 is off
    super_resolution: int = 0
    dtype: str = "float32"  # float32 or bfloat16 for computation; parameters are always float32
    # recompute activations in the backward pass: less memory, more time
    remat: bool = False
    # with remat, the activations to keep. nothing: none of those inside a block. convolutions: the
    # outputs of convolutions and matrix products
    remat_keep: str = "nothing"
    # exponents n of the features sin(2^n pi x_t) and cos(2^n pi x_t), added to the input (Kingma et
    # al. 2021); () is none
    fourier_features: tuple[int, ...] = ()
    # the network also predicts the variance of the reverse step, in twice the output channels
    # (Nichol & Dhariwal 2021); needs loss.objective=hybrid or vlb to train it
    learn_variance: bool = False
    # classifier only: how the pixels become one vector. mean: their mean. attention: the mean
    # attends to the pixels, which have learned positions (Dhariwal & Nichol 2021)
    pool: str = "mean"
    latent_channels: int = 4  # autoencoder only: channels of the latents


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The training loss: what the network predicts, and how its error is weighted."""

    kind: str = "eps"  # what the network predicts: eps (noise), x_0 (clean image) or v
    # weight of the squared error at each t: a row of WEIGHTINGS in build/loss.py. simple: 1
    weighting: str = "simple"
    # simple: the weighted squared error. vlb: the variational bound in bits/dim. hybrid: simple +
    # vlb_lambda * vlb, needs model.learn_variance (Nichol & Dhariwal 2021)
    objective: str = "simple"
    vlb_lambda: float = 1e-3  # objective=hybrid: weight of the bound
    # how each batch draws its timesteps: a row of TIME_SAMPLERS in build/loss.py. uniform: each
    # independently
    t_sampler: str = "uniform"
    min_snr_gamma: float = 5.0  # weighting=min_snr: gamma, the largest weight of the error of x_0
    p2_k: float = 1.0  # weighting=p2: k
    p2_gamma: float = 1.0  # weighting=p2: gamma; 0 weights the error of eps by 1
    # conditional models: fraction of training examples that lose their condition (label, embedding
    # and context at once), for classifier-free guidance; in [0, 1)
    p_uncond: float = 0.1


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """The training loss of an autoencoder; only for model.name=autoencoder.

    loss = reconstruction + kl_weight * KL / N, with N = H W C values of an image, and, if their
    weights are above 0, a perceptual term and a discriminator's (Rombach et al. 2022, eq. 25).
    """

    # mean error of a value of the image. l1: absolute. gaussian: negative log-likelihood, with a
    # scale that is learned too
    reconstruction: str = "l1"
    kl_weight: float = 1e-6  # weight of the KL from the latents to N(0, I), in nats per image
    # weight of the squared difference in the features of the small classifier, which is trained on
    # the labels of the data; 0 is off
    perceptual_weight: float = 0.0
    # weight of the discriminator of patches; 0 is off, the paper's is 0.5. Its gradient is scaled
    # to that of the reconstruction
    discriminator_weight: float = 0.0
    discriminator_start: int = 0  # training step from which the discriminator is used
    discriminator_channels: int = 64  # channels of the discriminator's first convolution
    discriminator_layers: int = 3  # number of its convolutions with stride 2


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimiser, and the exponential moving average (EMA) of the parameters."""

    name: str = "adam"  # adam or adamw
    learning_rate: float = 2e-4  # learning rate after the warm-up
    warmup_steps: int = 5000  # steps in which the learning rate rises linearly from 0; 0 is none
    decay: str = "constant"  # learning rate after the warm-up: constant, or cosine (0 at the end)
    clip_norm: float = 1.0  # largest global norm of the gradient; 0 does not clip
    b1: float = 0.9  # Adam's beta_1, decay of the first moment
    b2: float = 0.999  # Adam's beta_2, decay of the second moment
    eps: float = 1e-8  # Adam's epsilon, added to the root of the second moment
    weight_decay: float = 0.0  # adamw only: weight decay
    ema_decay: float = 0.9999  # decay of the EMA per step, in [0, 1); samples use the EMA
    # True: the decay at step n is min(ema_decay, (1 + n) / (10 + n)), so the EMA starts quickly
    ema_warmup: bool = True
    # stop the run after this many updates in a row with NaN or infinity; at least 1. Each such
    # update is skipped
    max_nonfinite: int = 20


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop: its length, its batches, and what it writes when."""

    num_steps: int = 800_000  # number of training steps (parameter updates)
    batch_size: int = 128  # images per step, over all devices and processes together
    # seed of initialisation, data order, noise and samples, in 0..2^32-1
    seed: int = 0
    # training steps per compiled call; 0 is 1 on CPU and 10 on other devices. A request to stop
    # waits for two calls, so choose 1 if a step takes longer than a quarter of a second
    steps_per_call: int = 0
    # micro-batches per step: their gradients are averaged, so a large batch needs less memory
    accumulate: int = 1
    log_every: int = 100  # steps between rows of the metrics file; 0 is only at the end
    # steps between grids of samples, by the EMA and by the raw weights; 0 is only at the end
    sample_every: int = 10_000
    num_samples: int = 64  # images in a grid of samples
    checkpoint_every: int = 5000  # steps between checkpoints; 0 is only at the end
    keep_last: int = 2  # number of newest checkpoints that stay on the disk, at least 1
    # checkpoints at multiples of this step stay on the disk too; 0 is none
    keep_every: int = 100_000


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """How images are sampled, during training and by `ddpm_jax.load`.

    An option that the chosen sampler does not use must stay at its default.
    """

    # a row of SAMPLERS in build/sampling.py
    sampler: str = "ancestral"
    # ancestral, predictor_corrector: variance of the reverse step. fixed_large: beta_t.
    # fixed_small: the posterior's, better for few steps. learned_range: the network's, needs
    # model.learn_variance
    variance: str = "fixed_large"
    eta: float = 0.0  # ddim: amount of noise, in [0, 1]; 0 is deterministic, 1 is ancestral
    order: int = 2  # unipc: order of the solver, 2 or 3
    stochastic: bool = False  # dpm_solver_pp_2m: solve the SDE instead of the ODE
    # euler, heun: noise added over the whole chain (S_churn of Karras et al. 2022, table 5)
    s_churn: float = 0.0
    s_min: float = 0.0  # euler, heun: no churn where sigma_t / alpha_t is below this (S_tmin)
    # euler, heun: no churn where sigma_t / alpha_t is above this (S_tmax); 0 is no upper limit
    s_max: float = 0.0
    s_noise: float = 1.0  # euler, heun: scale of the churn's noise, above 0 (S_noise)
    corrector_snr: float = 0.16  # predictor_corrector: signal-to-noise ratio of a Langevin step
    num_corrections: int = 1  # predictor_corrector: Langevin steps at each timestep
    # sampling steps; most samplers call the network once per step. 0 is all T timesteps
    num_steps: int = 0
    # spacing of the sampling timesteps: a row of GRIDS in build/sampling.py
    timesteps: str = "uniform"
    rho: float = 7.0  # timesteps=karras: exponent; a larger one has more steps at low noise
    clip_x_0: bool = True  # clip each predicted x_0 to [-1, 1]
    # with clip_x_0: clip x_0 to this quantile of |x_0| and rescale it, instead of to [-1, 1]
    # (Saharia et al. 2022); in (0, 1], such as 0.995. 0 is off
    dynamic_threshold: float = 0.0
    # with data.codec, in place of clip_x_0: clip each predicted latent to this many standard
    # deviations; 0 is off
    clip_latents: float = 0.0
    # weight w of classifier-free guidance; 0 is off. Other codes' guidance scale is 1 + w
    guidance: float = 0.0
    # (low, high): guide only at timesteps low <= t <= high; () is all timesteps
    guidance_interval: tuple[int, ...] = ()
    # in [0, 1]: how far the standard deviation of a guided x_0 is brought back to that of the
    # conditional x_0 without guidance (Lin et al. 2023); 0 is off
    guidance_rescale: float = 0.0
    chunk_size: int = 256  # images that are sampled at once, at least 1; limits the memory


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """The held-out loss and sample quality, during training and by `experiments.evaluate`."""

    every: int = 5000  # steps between evaluations of the held-out loss; 0 is never
    # held-out images of that loss; each evaluation uses the same images and noise
    num_examples: int = 1024
    # steps between Fréchet distances of samples to the training images; 0 is never
    samples_every: int = 0
    # samples of a Fréchet distance. Compare only distances with the same number
    num_samples: int = 1000
    # experiments.evaluate: number of random seeds; each draws its own num_samples samples
    num_seeds: int = 3
    # sampler of the samples that are evaluated (names as in sample.sampler); a fast one
    sampler: str = "dpm_solver_pp_2m"
    num_steps: int = 20  # sampling steps of that sampler, at least 1; more than T is T
    timesteps: str = "trailing"  # timesteps of that sampler (names as in sample.timesteps)
    # experiments.evaluate: images of each split for the variational bound in bits/dim; 0 is none
    bound_images: int = 1024
    bound_terms: int = 100  # terms of the bound that are computed per image, of T in all
    ode_tolerance: float = 1e-4  # experiments.evaluate --ode: tolerance of the ODE solver


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The devices: data x fsdp of them share each batch."""

    # groups of devices; each group holds a full copy of the training state. -1 is as many as fit
    data: int = -1
    # devices per group. They shard the training state, so each holds 1/fsdp of it; must divide the
    # number of devices
    fsdp: int = 1


@dataclasses.dataclass(frozen=True)
class Config:
    """The whole configuration of a run, one section per field."""

    data: DataConfig = DataConfig()
    process: ProcessConfig = ProcessConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()
    eval: EvalConfig = EvalConfig()
    mesh: MeshConfig = MeshConfig()


def from_dict(mapping: Mapping[str, Any]) -> Config:
    """Build the checked `Config` from {section: {field: value}}.

    Args:
      mapping: sections and their fields; those that are absent keep their defaults.

    Raises:
      UserError: an unknown section or field (the message names the nearest known one), a value of
        the wrong type, or a number out of its range.
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
    """Return the config as {section: {field: value}}, the inverse of `from_dict`."""
    return dataclasses.asdict(config)


def flatten(config: Config) -> dict[str, Any]:
    """Return the config as {"section.field": value}."""
    return {
        f"{section}.{name}": value
        for section, fields in to_dict(config).items()
        for name, value in fields.items()
    }
