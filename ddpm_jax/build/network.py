"""The network of a config: the U-Net, the X-UNet, or the classifier of noisy images."""

import jax.numpy as jnp

from ddpm_jax.config import ModelConfig
from ddpm_jax.config_checks import check_unused
from ddpm_jax.errors import UserError, look_up
from ddpm_jax.models import Classifier, Model, UNet, XUNet, as_model
from ddpm_jax.models.blocks import PADDINGS

NETWORKS = {  # model.name -> what it is, and how such a run is used
    "unet": ("a denoiser", "train denoisers by experiments.train"),
    "xunet": ("a denoiser of novel views", "train denoisers by experiments.train"),
    "classifier": ("a classifier", "pass a classifier as --classifier"),
    "autoencoder": ("an autoencoder", "pass an autoencoder as --config.data.codec"),
}
ONLY_UNET = ("middle_attention", "null_class")  # fields of the section `model`
NOT_XUNET = (  # fields of the section `model`
    "head_dim",
    "middle_attention",
    "scale_shift",
    "resample",
    "class_conditional",
    "null_class",
    "embedding_dim",
    "context_dim",
    "super_resolution",
    "fourier_features",
    "pool",
    "latent_channels",
)
ATTENTIONS: dict[str, None] = dict.fromkeys(("normalised", "plain", "none"))
POOLS: dict[str, str] = {name: name for name in ("mean", "attention")}  # model.pool
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def model(config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int) -> Model:
    """Build the denoiser of `config.model`.

    Args:
      config: the section `model`.
      image_shape: (H, W, C) of what the network sees: images, or latents.
      num_classes: number of classes of the data; 0 is none.

    Raises:
      UserError: model.name or model.dtype is unknown or wrong; the model needs classes but the data
        have none; the sizes do not fit the images.
    """
    if config.name == "xunet":
        return _xunet(config, image_shape)
    check_name(config, "unet")
    check_unused(config, ["latent_channels"], "model.name=unet", " (autoencoder: yes)")
    check_unused(config, ["pool"], "model.name=unet", " (classifier: yes)")
    if not config.class_conditional:
        check_unused(config, ["null_class"], "model.class_conditional=False", " (True: yes)")
    look_up(ATTENTIONS, "model.middle_attention", config.middle_attention)
    if config.class_conditional and not num_classes:
        raise UserError(
            "model.class_conditional is True, but the data have no labels; put the images into one "
            "sub-folder per class, or set model.class_conditional to False"
        )
    unet = UNet(
        out_channels=image_shape[-1] * (2 if config.learn_variance else 1),
        num_classes=num_classes if config.class_conditional else 0,
        null_class=config.null_class,
        middle_attention=config.middle_attention,
        **shared_with_classifier(config),
        image_channels=image_shape[-1] if config.super_resolution else 0,
        fourier_features=config.fourier_features,
        embedding_dim=config.embedding_dim,
        context_dim=config.context_dim,
        **sizes(config),
    )
    unet.check_sizes(image_shape[:2])
    return as_model(unet, image_shape)


def _xunet(config: ModelConfig, image_shape: tuple[int, int, int]) -> Model:
    """Build the denoiser of novel views; arguments and errors as in `model`."""
    check_unused(config, NOT_XUNET, "model.name=xunet", " (unet, classifier or autoencoder: yes)")
    shared = sizes(config)
    UNet(**shared).check_sizes(image_shape[:2])
    if not config.attention_resolutions:
        raise UserError(
            "model.attention_resolutions is empty, but the frames of model.name=xunet meet in its "
            "attention; name the height of at least one level"
        )
    network = XUNet(
        out_channels=image_shape[-1] * (2 if config.learn_variance else 1),
        norm_eps=config.norm_eps,
        freq_shift=config.freq_shift,
        time_channels=_time_channels(config),
        time_scale=config.time_scale,
        **shared,
    )
    return as_model(network, image_shape)


def classifier(config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int) -> Model:
    """Build the classifier of `config.model`: its `apply` returns logits [B, num_classes].

    Args:
      config: the section `model`.
      image_shape: (H, W, C) of what the network sees: images, or latents.
      num_classes: number of classes of the data, at least 1.

    Raises:
      UserError: model.name or model.dtype is unknown or wrong; the data have no labels; the sizes
        do not fit the images.
    """
    check_name(config, "classifier")
    check_unused(config, ONLY_UNET, "model.name=classifier", " (unet: yes)")
    if not num_classes:
        raise UserError(
            "a classifier needs labels, but the data have none; put the images into one sub-folder "
            "per class"
        )
    settings = sizes(config) | shared_with_classifier(config)
    UNet(**settings).check_sizes(image_shape[:2])
    if config.pool == "attention" and not config.head_dim:
        raise UserError("model.pool is attention, which needs model.head_dim; set it to 64")
    pool = look_up(POOLS, "model.pool", config.pool)
    return as_model(Classifier(num_classes=num_classes, pool=pool, **settings), image_shape)


def check_name(config: ModelConfig, wanted: str) -> None:
    """Raise `UserError` if model.name is not the wanted network."""
    look_up(NETWORKS, "model.name", config.name)
    if config.name != wanted:
        what, _ = NETWORKS[wanted]
        _, use = NETWORKS[config.name]
        raise UserError(f"model.name is {config.name!r}, but {what} is needed here; {use}")


def shared_with_classifier(config: ModelConfig) -> dict:
    """Return the options that the U-Net and the classifier share, but not the autoencoder."""
    look_up(PADDINGS, "model.resample", config.resample)
    return dict(
        head_dim=config.head_dim,
        norm_eps=config.norm_eps,
        scale_shift=config.scale_shift,
        freq_shift=config.freq_shift,
        time_channels=_time_channels(config),
        time_scale=config.time_scale,
        resample=config.resample,
    )


def _time_channels(config: ModelConfig) -> int:
    """Return the number of sines and cosines of the time embedding."""
    if config.time_channels % 2:
        raise UserError(f"model.time_channels must be even, found {config.time_channels}")
    return config.time_channels or config.channels


def sizes(config: ModelConfig) -> dict:
    """Return the options that all networks share."""
    return dict(
        channels=config.channels,
        channel_multipliers=config.channel_multipliers,
        patch_size=config.patch_size,
        num_res_blocks=config.num_res_blocks,
        attention_resolutions=config.attention_resolutions,
        num_heads=config.num_heads,
        dropout=config.dropout,
        num_groups=config.num_groups,
        dtype=look_up(DTYPES, "model.dtype", config.dtype),
        remat=config.remat,
        remat_keep=config.remat_keep,
    )
