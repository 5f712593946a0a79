"""torch-fidelity's Inception with random weights, and its metrics, for tests to compare with.

Its package imports torchvision, which does not load with PyTorch's CPU build. The modules that the
tests need do not use torchvision. They are imported without their package's `__init__`, and without
its `utils`, which reads folders of images.
"""

import importlib
import importlib.util
import sys
import types
import unittest.mock

import numpy as np
import pytest


def module(name):
    """Import a module of torch-fidelity, or skip the test where it is not installed."""
    pytest.importorskip("torch")
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None:
        pytest.skip("torch-fidelity is not installed")
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(spec.submodule_search_locations)
    unused = {"torch_fidelity": package, "torch_fidelity.utils": unittest.mock.MagicMock()}
    with unittest.mock.patch.dict(sys.modules, unused):
        return importlib.import_module(f"torch_fidelity.{name}")


def images(seed, n, height=32, width=32):
    """Smooth random images, uint8 [n, height, width, 3], of different colours and contrasts."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: 1 : height * 1j, : 1 : width * 1j]
    waves = rng.normal(size=(n, 1, 1, 3, 2)) * 8
    phase = waves[..., 0] * y[None, :, :, None] + waves[..., 1] * x[None, :, :, None]
    contrast, mean = rng.uniform(20, 120, (n, 1, 1, 1)), rng.uniform(60, 190, (n, 1, 1, 3))
    noise = rng.normal(size=(n, height, width, 3)) * rng.uniform(0, 30, (n, 1, 1, 1))
    return (mean + contrast * np.sin(phase) + noise).clip(0, 255).astype(np.uint8)


def channels_first(x):
    """The same images as torch has them: uint8 [N, 3, H, W]."""
    import torch

    return torch.tensor(np.moveaxis(x, -1, 1).copy())


def extractor(path, features=("2048", "logits_unbiased")):
    """Their extractor, with random weights, which are also written to `path` as torch does it.

    The statistics of the normalisations are those of random images, each layer's given the layers
    before it, so that what goes from layer to layer is of size 1 and differs between images.
    """
    import torch

    inception = module("feature_extractor_inceptionv3")

    class Random(inception.FeatureExtractorInceptionV3):
        def load_state_dict(self, _):
            generator = torch.Generator().manual_seed(0)
            for name, tensor in self.state_dict().items():
                if tensor.ndim > 1:
                    scale = (2 / tensor[0].numel()) ** 0.5
                    tensor.copy_(scale * torch.randn(tensor.shape, generator=generator))
                elif name.endswith(("weight", "bias")):
                    noise = 0.3 * torch.randn(tensor.shape, generator=generator)
                    tensor.copy_(noise + (1.0 if name.endswith("weight") else 0.0))

    torch.save({}, path)
    random = Random("random", list(features), feature_extractor_weights_path=str(path))
    for layer in random.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    random.train()
    random(channels_first(images(1, 8)))
    random.eval()
    torch.save(random.state_dict(), path)
    return inception.FeatureExtractorInceptionV3(
        "random", list(features), feature_extractor_weights_path=str(path)
    )
