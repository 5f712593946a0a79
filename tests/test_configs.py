"""Every config file of experiments/ is a config, and those of a paper have the paper's values.

That the network and the step of each can be traced is in test_configs_traced.py.
"""

import importlib
import pathlib

import jax
import pytest

from ddpm_jax import build
from ddpm_jax.config import flatten, from_dict
from ddpm_jax.errors import UserError

VARIANTS = {
    "folder": ("", "small"),
    "emoji": ("", "small"),
    "fashion_mnist": ("", "small"),
    "fashion_autoencoder": ("", "small"),
    "fashion_latent": ("", "small"),
    "emoji_text": ("", "small"),
    "solids_views": ("", "small", "regression"),
    "three_dim": ("", "64"),
    "digits_bpd": ("simple", "hybrid", "vlb"),
}


def names():
    directory = pathlib.Path(__file__).parents[1] / "experiments"
    sources = {path.stem: path.read_text() for path in directory.glob("*.py")}
    # Configs of several runs: tests/test_imbalanced.py and tests/test_scene.py.
    others = ("base", "fashion_imbalanced", "dreamfusion_solids")
    return sorted(n for n, text in sources.items() if "def get_config" in text and n not in others)


CONFIGS = [(name, variant) for name in names() for variant in VARIANTS.get(name, (None,))]


def load(name, variant=None):
    get_config = importlib.import_module(f"experiments.{name}").get_config
    return from_dict(get_config() if variant is None else get_config(variant))


def test_every_file_is_a_config_whose_process_and_sampler_can_be_built():
    assert len(CONFIGS) > 15
    for name, variant in CONFIGS:
        config = load(name, variant)
        if config.process.schedule != "learned":
            build.sampler(config.sample, build.process(config.process))


# Ho et al. 2020, section 4 and appendix B; clipping, warm-up and flips are of their code.
HO = {
    "process.schedule": "linear",
    "process.num_timesteps": 1000,
    "process.zero_terminal_snr": False,
    "model.channels": 128,
    "model.num_res_blocks": 2,
    "model.attention_resolutions": (16,),
    "model.num_heads": 1,
    "model.num_groups": 32,
    "model.scale_shift": False,
    "model.learn_variance": False,
    "model.class_conditional": False,
    "loss.kind": "eps",
    "loss.weighting": "simple",
    "loss.objective": "simple",
    "loss.t_sampler": "uniform",
    "optim.name": "adam",
    "optim.b1": 0.9,
    "optim.b2": 0.999,
    "optim.warmup_steps": 5000,
    "optim.decay": "constant",
    "optim.clip_norm": 1.0,
    "optim.ema_decay": 0.9999,
    "sample.sampler": "ancestral",
    "sample.num_steps": 0,
    "sample.clip_x_0": True,
}
LARGE = HO | {
    "data.image_size": 256,
    "data.channels": 3,
    "model.channel_multipliers": (1, 1, 2, 2, 4, 4),
    "model.dropout": 0.0,
    "optim.learning_rate": 2e-5,
    "train.batch_size": 64,
}
CIFAR10 = {
    "data.name": "cifar10",
    "data.flip": True,
    "model.channel_multipliers": (1, 2, 2, 2),
    "model.dropout": 0.1,
    "optim.learning_rate": 2e-4,
    "train.batch_size": 128,
    "train.num_steps": 800_000,
}
# Nichol & Dhariwal 2021, table 2 and appendix A
IMPROVED = (
    HO
    | CIFAR10
    | {
        "process.schedule": "cosine",
        "process.num_timesteps": 4000,
        "model.num_res_blocks": 3,
        "model.attention_resolutions": (16, 8),
        "model.num_heads": 4,
        "model.scale_shift": True,
        "model.dropout": 0.3,
        "model.learn_variance": True,
        "optim.learning_rate": 1e-4,
        "optim.warmup_steps": 0,
        "optim.clip_norm": 0.0,
        "train.num_steps": 500_000,
        "sample.variance": "learned_range",
    }
)
PAPERS = {
    "cifar10": HO | CIFAR10 | {"sample.variance": "fixed_large"},
    "cifar10_cond": HO | CIFAR10 | {"model.class_conditional": True, "loss.p_uncond": 0.1},
    "cifar10_cosine_v": HO
    | CIFAR10
    | {
        "process.schedule": "cosine",
        "loss.kind": "v",
        "loss.weighting": "min_snr",
        "loss.min_snr_gamma": 5.0,  # Hang et al. 2023
    },
    "cifar10_hybrid": IMPROVED | {"loss.objective": "hybrid", "loss.vlb_lambda": 1e-3},
    "cifar10_vlb": IMPROVED | {"loss.objective": "vlb", "loss.t_sampler": "loss_second_moment"},
    "celeba_hq_256": LARGE | {"data.flip": True, "train.num_steps": 500_000},
    "lsun_bedroom_256": LARGE | {"data.flip": False, "train.num_steps": 2_400_000},
    "lsun_church_256": LARGE | {"data.flip": True, "train.num_steps": 1_200_000},
    "three_dim": {  # Watson et al. 2022, section 2.3 and their code
        "data.image_size": 128,
        "data.flip": False,
        "process.schedule": "cosine",
        "model.name": "xunet",
        "model.channels": 256,
        "model.channel_multipliers": (1, 2, 2, 4),
        "model.num_res_blocks": 3,
        "model.attention_resolutions": (16, 32),  # and 8, which 128x128 does not pass
        "model.num_heads": 4,
        "model.dropout": 0.1,
        "loss.kind": "eps",
        "loss.p_uncond": 0.1,
        "sample.num_steps": 256,
    },
    "cifar10_vdm": {  # the authors' configs/cifar10.py
        "data.flip": False,
        "process.schedule": "learned",
        "process.gamma_min": -13.3,
        "process.gamma_max": 5.0,
        "model.fourier_features": (7, 8),
        "model.dropout": 0.1,
        "optim.name": "adamw",
        "optim.learning_rate": 2e-4,
        "optim.warmup_steps": 100,
        "optim.b2": 0.99,
        "optim.weight_decay": 0.01,
        "optim.clip_norm": 0.0,
        "optim.ema_decay": 0.9999,
        "train.num_steps": 10_000_000,
        "train.batch_size": 128,
    },
}


@pytest.mark.parametrize("name", PAPERS)
def test_the_values_are_those_of_the_paper(name):
    config = load(name)
    found = flatten(config)
    wrong = {key: found[key] for key, value in PAPERS[name].items() if found[key] != value}
    assert not wrong
    if config.process.schedule == "linear":
        process = build.process(config.process)
        assert float(process.betas[1]) == pytest.approx(1e-4, rel=1e-5)
        assert float(process.betas[-1]) == pytest.approx(0.02, rel=1e-5)


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_an_unknown_variant_is_refused(name):
    with pytest.raises(UserError) as error:
        load(name, "tiny")
    allowed = sorted(filter(None, VARIANTS[name]))
    others = ", or no variant" if "" in VARIANTS[name] else ""
    assert str(error.value) == (
        f"unknown variant of {name}.py 'tiny'; allowed: {', '.join(allowed)}{others}"
    )


def test_the_small_folder_is_32x32_a_million_parameters_and_a_warm_up_of_few_steps():
    config = load("folder", "small")
    assert (config.data.name, config.data.image_size, config.data.channels) == ("folder", 32, 3)
    network = build.model(config.model, (32, 32, 3), None)
    params = jax.eval_shape(network.init, jax.random.key(0))
    assert 0.9e6 < sum(leaf.size for leaf in jax.tree.leaves(params)) < 1.2e6
    assert 0 < config.optim.warmup_steps <= config.train.num_steps / 10
