"""A long-tailed Fashion-MNIST: do synthetic images help the scarce classes?

Command:  python -m experiments.imbalanced --config=experiments/fashion_imbalanced.py
          ... --config=experiments/fashion_imbalanced.py:10 --workdir=runs/fashion_imbalanced_10
          ... --config=experiments/fashion_imbalanced.py:smoke --workdir=runs/imbalanced_smoke
          ... --config=experiments/fashion_imbalanced.py:digits --workdir=runs/digits_imbalanced
          ... --config=experiments/fashion_imbalanced.py --workdir=runs/cifar10_imbalanced
              --config.data.name=cifar10 --config.data.flip=True
Data:     1,000 training images of the first class down to 10 of the last (`:10`: 100); all 10,000
          test images. `:digits` has the 8x8 digits with an imbalance of 10; its first class keeps
          as many images as the smallest class has. `:smoke` has tiny networks and a few digits: it
          only checks that the experiment runs.
Paper:    the arms are those of docs/imbalanced.md, with their papers.
Measured: synthetic images do not help; shifts of the real ones help much more (2026-11-26, jax
          0.10.2, docs/imbalanced.md). 60 minutes for `:10` on one of two cores. `:digits`: no
          clear difference; 22 minutes (2026-11-27). CIFAR-10: nothing yet.
"""

import dataclasses

import ml_collections

from ddpm_jax.training.arms import Settings
from experiments import base, fashion_autoencoder, fashion_latent

SMALLEST = {  # `:smoke`, in both runs
    "model.channels": 8,
    "model.num_groups": 4,
    "model.num_res_blocks": 1,
    "optim.warmup_steps": 1,
    "train.num_steps": 4,
    "train.batch_size": 8,
    "train.num_samples": 4,
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Return the config; `variant` is "", "10", "digits" or "smoke".

    Its sections are `data`, `arms` (`ddpm_jax.training.arms.Settings`), and the configs of the two
    runs without their data: `autoencoder` and `diffusion`.
    """
    base.check_variant(__file__, variant, ("", "10", "digits", "smoke"))
    autoencoder = fashion_autoencoder.get_config("small")
    diffusion = fashion_latent.get_config("small")
    data, settings = diffusion.data.copy_and_resolve_references(), Settings()
    data.codec = ""
    data.imbalance = 10.0 if variant in ("10", "digits") else 100.0
    data.max_per_class = 1000
    diffusion.train.num_steps = 5000
    diffusion.sample.num_steps = 15
    if variant in ("digits", "smoke"):
        data.name, data.image_size, data.crop = "digits", 0, "center"
        autoencoder.model.patch_size = 1  # latents of 4x4
    if variant == "smoke":
        data.imbalance, data.max_per_class = 4.0, 40
        for run in (autoencoder, diffusion):
            run.update_from_flattened_dict(SMALLEST)
            run.model.channel_multipliers = (1, 1) if run is autoencoder else (1,)
        diffusion.process.num_timesteps = 8
        diffusion.model.attention_resolutions = ()
        diffusion.sample.num_steps = 2
        settings = Settings(
            num_seeds=2,
            num_steps=3,
            batch_size=16,
            channels=4,
            choice_seeds=1,
            guidance=(0.0, 1.0),
            reject=(0.1, 0.5),
        )
    runs = {"autoencoder": autoencoder.to_dict(), "diffusion": diffusion.to_dict()}
    for sections in runs.values():
        del sections["data"]
    content = {"data": data.to_dict(), **runs, "arms": dataclasses.asdict(settings)}
    return ml_collections.ConfigDict(content).lock()
