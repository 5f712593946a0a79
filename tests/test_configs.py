"""Every config of `experiments/` is one that the library accepts and can build."""

import importlib
from pathlib import Path

import pytest

from ddpm_jax import build
from ddpm_jax.config import from_dict

FILES = sorted(
    path.stem
    for path in (Path(__file__).parents[1] / "experiments").glob("*.py")
    if "def get_config" in path.read_text()
)
VARIANTS = {"emoji": ("", "small"), "emoji_text": ("", "small")}
CASES = [(name, v) for name in FILES for v in VARIANTS.get(name, (None,))]
SHAPES = {"digits": (8, 8, 1), "cifar10": (32, 32, 3), "emoji": (32, 32, 3)}


def config_of(name, variant=None):
    get_config = importlib.import_module(f"experiments.{name}").get_config
    return from_dict((get_config() if variant is None else get_config(variant)).to_dict())


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_config_builds(name, variant):
    config = config_of(name, variant)
    size = config.data.image_size
    shape = (size, size, 3) if size else SHAPES.get(config.data.name, (256, 256, 3))
    network = build.classifier if config.model.name == "classifier" else build.model
    network(config.model, shape, 10)
    process = build.process(config.process)
    assert process.num_timesteps == config.process.num_timesteps
    build.sampler(config.sample, process)
    assert build.grid(config.sample, process)[0] == process.num_timesteps


def test_all_configs_are_found():
    assert {"digits", "digits_cond", "digits_superres", "emoji_text", "cifar10"} <= set(FILES)


def test_digits_cond_is_digits_with_classes_and_a_null_class():
    config, digits = config_of("digits_cond"), config_of("digits")
    assert config.model.class_conditional and 0 < config.loss.p_uncond < 1
    assert (config.train, config.optim, config.data) == (digits.train, digits.optim, digits.data)
