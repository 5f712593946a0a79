"""Our autoencoder against diffusers' AutoencoderKL, both ways through its files."""

import jax
import numpy as np
import pytest
import safetensors.numpy

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from ddpm_jax.build import autoencoders  # noqa: E402
from ddpm_jax.config import ModelConfig  # noqa: E402
from ddpm_jax.pretrained import autoencoder_kl, diffusers_layout  # noqa: E402
from ddpm_jax.runs.codec import open_codec  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
]

SHAPE = (16, 24, 3)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    torch.manual_seed(0)
    net = diffusers.AutoencoderKL(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=2,
        norm_num_groups=4,
        latent_channels=5,
        scaling_factor=0.25,
        shift_factor=0.1,
    ).eval()
    with torch.no_grad():
        for p in net.parameters():  # no weight is zero or one
            p += 0.05 * torch.randn_like(p)
    path = tmp_path_factory.mktemp("vae")
    net.save_pretrained(path)
    return net, path


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(-1, 1, (2, *SHAPE)).astype(np.float32)


def check_agrees(net, codec, images):
    with torch.no_grad():
        found = net.encode(torch.from_numpy(images).permute(0, 3, 1, 2)).latent_dist
        mean, log_variance = (x.permute(0, 2, 3, 1).numpy() for x in (found.mean, found.logvar))
        decoded = net.decode(found.mean).sample.permute(0, 2, 3, 1).numpy()
    own = jax.jit(codec.encoder)(codec.params, images)
    np.testing.assert_allclose(own[0], mean, atol=1e-4)
    np.testing.assert_allclose(own[1], log_variance, atol=1e-4)
    np.testing.assert_allclose(jax.jit(codec.decoder)(codec.params, mean), decoded, atol=1e-4)


def test_we_read_what_diffusers_writes(theirs, images):
    net, path = theirs
    codec = open_codec(path, SHAPE)
    assert codec.latent_shape == (4, 6, 5)
    check_agrees(net, codec, images)
    sizes = autoencoder_kl.read_sizes(path)
    assert (sizes.scaling_factor, sizes.shift_factor) == (0.25, 0.1)


def test_we_read_bin_files_and_old_names(theirs, images, tmp_path):
    net, path = theirs
    (tmp_path / "config.json").write_text((path / "config.json").read_text())
    state = {}
    for name, value in net.state_dict().items():
        for old, new in diffusers_layout.OLD_ATTENTION.items():
            name = name.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
        state[name] = value
    assert any("proj_attn" in name for name in state)
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    check_agrees(net, open_codec(tmp_path, SHAPE), images)


def test_diffusers_reads_what_we_write(images, tmp_path):
    model = ModelConfig(
        name="autoencoder", channels=8, channel_multipliers=(1, 2), num_res_blocks=1, num_groups=4,
        dropout=0.0, attention_resolutions=(), latent_channels=3,
    )  # fmt: skip
    network = autoencoders.autoencoder(model, SHAPE)
    params = jax.tree.map(
        lambda p: np.asarray(p) + 0.05 * np.random.default_rng(p.size).normal(size=p.shape),
        jax.jit(network.init)(jax.random.key(0)),
    )
    autoencoder_kl.write(tmp_path, params, model, SHAPE, scaling_factor=0.5)
    net = diffusers.AutoencoderKL.from_pretrained(tmp_path).eval()
    assert net.config.scaling_factor == 0.5 and net.config.sample_size == 16
    codec = open_codec(tmp_path, SHAPE)
    for a, b in zip(jax.tree.leaves(codec.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    check_agrees(net, codec, images)


def test_what_we_write_has_the_names_and_shapes_of_diffusers(theirs, tmp_path):
    net, path = theirs
    codec, sizes = open_codec(path, SHAPE), autoencoder_kl.read_sizes(path)
    autoencoder_kl.write(tmp_path, codec.params, sizes.model, SHAPE)
    found = safetensors.numpy.load_file(tmp_path / diffusers_layout.WEIGHTS[0])
    expected = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    assert {name: value.shape for name, value in found.items()} == expected
