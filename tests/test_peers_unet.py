"""Our U-Net against diffusers' UNet2DModel, both ways through its files.

Needs the `peers` extra.
"""

import jax
import numpy as np
import pytest

from ddpm_jax import build
from ddpm_jax.config import ModelConfig
from ddpm_jax.errors import UserError
from ddpm_jax.pretrained import diffusers_layout, unet_2d
from ddpm_jax.pretrained.unet_2d import Network

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.quick_to_compile,
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

HO = dict(  # the options of the published models of google/ddpm-*
    downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, attention_head_dim=None,
    norm_eps=1e-6, layers_per_block=2,
)  # fmt: skip


def blocks(attends, plain=("DownBlock2D", "UpBlock2D"), **others):
    """The types of blocks of a network with attention at some levels."""
    down, up = plain
    return dict(
        down_block_types=["AttnDownBlock2D" if attend else down for attend in attends],
        up_block_types=["AttnUpBlock2D" if attend else up for attend in reversed(attends)],
        **others,
    )


TWO = dict(
    blocks([False, True]), sample_size=8, block_out_channels=[8, 16], layers_per_block=1,
    norm_num_groups=4,
)  # fmt: skip
LEVELS_256 = [False, False, False, False, True, False]
RESNETS = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
NETWORKS = {
    "cifar10-32": HO
    | blocks([False, True, False, False])
    | dict(sample_size=16, block_out_channels=[8, 16, 16, 16], norm_num_groups=4),
    "celebahq-, church-, bedroom-, cat-256": HO
    | blocks(LEVELS_256)
    | dict(sample_size=32, block_out_channels=[4, 4, 8, 8, 16, 16], norm_num_groups=4),
    "their training example": blocks(LEVELS_256)
    | dict(sample_size=32, block_out_channels=[8, 8, 16, 16, 32, 32], norm_num_groups=4),
    "the defaults": dict(sample_size=8, block_out_channels=[8, 16, 24, 32], norm_num_groups=8),
    "class-conditional": TWO | dict(num_class_embeds=5),
    "scale-shift": TWO | dict(resnet_time_scale_shift="scale_shift"),
    "scale-shift, middle norm": TWO
    | dict(resnet_time_scale_shift="scale_shift", attn_norm_num_groups=4),
    "non-square, grey": TWO | dict(sample_size=[8, 12], in_channels=1, out_channels=1),
    "no middle attention": TWO | dict(add_attention=False, dropout=0.1, norm_eps=0.1),
    "residual": TWO
    | blocks([False, True, False], RESNETS, downsample_type="resnet", upsample_type="resnet")
    | dict(block_out_channels=[8, 16, 16]),
    "mixed times": TWO | dict(flip_sin_to_cos=False, attention_head_dim=4, act_fn="swish"),
    "mixed times 2": TWO | dict(freq_shift=1, downsample_padding=0, layers_per_block=3),
    "learned variance": TWO | dict(out_channels=6, attention_head_dim=16),
}
MIXED = {"mixed times", "mixed times 2"}  # their weights come back in another order of cos and sin


def make(**options):
    """A UNet2DModel in which no weight is zero or one."""
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(**options).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def model_of(network):
    return build.model(network.model, network.image_shape, network.num_classes)


def shapes(network):
    return jax.eval_shape(model_of(network).init, jax.random.key(0))


def assert_same_function(net, network, params):
    """Compare the outputs, relative to the size of the output."""
    x = np.random.default_rng(0).normal(size=(3, *network.image_shape)).astype(np.float32)
    t = np.array([0, 7, 999])
    theirs, ours = {}, None
    if network.num_classes:
        label = np.array([0, 2, network.num_classes - 1], np.int32)
        ours, theirs = {"label": label}, {"class_labels": torch.from_numpy(label)}
    output = jax.jit(model_of(network).apply)(params, x, t, ours)
    with torch.no_grad():
        expected = net(torch.from_numpy(np.moveaxis(x, -1, 1)), torch.from_numpy(t), **theirs)
    expected = np.moveaxis(expected.sample.numpy(), 1, -1)
    assert np.std(expected) > 0.1
    assert np.abs(output - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_goes_there_and_back(name, tmp_path):
    net = make(**NETWORKS[name])
    net.save_pretrained(tmp_path / "a", safe_serialization=len(name) % 2 == 0)  # .bin too
    network = unet_2d.read_network(tmp_path / "a")
    params = unet_2d.read_params(tmp_path / "a", shapes(network))
    assert_same_function(net, network, params)

    state = unet_2d.state_of(params, network.model)
    diffusers_layout.write(tmp_path / "b", unet_2d.options_of(network), state)
    back = diffusers.UNet2DModel.from_pretrained(tmp_path / "b").eval()
    assert_same_function(back, network, params)
    before, after = net.state_dict(), back.state_dict()
    if name not in MIXED:
        assert before.keys() == after.keys()
        for key in before:
            assert torch.equal(before[key], after[key]), key
        for key, value in net.config.items():
            if not key.startswith("_") and key not in ("act_fn", "attn_norm_num_groups"):
                assert np.array_equal(value, back.config[key]), key
    again = unet_2d.read_params(tmp_path / "b", params)
    jax.tree.map(np.testing.assert_array_equal, again, params)


OURS = {
    "heads, null class": dict(num_heads=2, class_conditional=True, channel_multipliers=(1, 1)),
    "FiLM, norm in the middle": dict(scale_shift=True, attention_resolutions=()),
}


@pytest.mark.parametrize("name", OURS)
def test_our_own_network_goes_there(name, tmp_path):
    sizes = dict(channels=8, channel_multipliers=(1, 2), num_groups=4, num_res_blocks=1)
    model = ModelConfig(**sizes | dict(attention_resolutions=(4,)) | OURS[name])
    network = Network(model, (8, 8, 3), 3 * model.class_conditional)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(np.float32), shapes(network)
    )
    state = unet_2d.state_of(params, model)
    diffusers_layout.write(tmp_path, unet_2d.options_of(network), state)
    net = diffusers.UNet2DModel.from_pretrained(tmp_path).eval()
    assert net.config.num_class_embeds == (4 if model.class_conditional else None)
    assert_same_function(net, network, params)
    again = unet_2d.read_network(tmp_path)  # the null class has become the last class
    assert again.num_classes == (4 if model.class_conditional else 0)
    read = unet_2d.read_params(tmp_path, shapes(again))
    for a, b in zip(jax.tree.leaves(read), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a.ravel(), b.ravel())


PUBLISHED = {
    "cifar10-32": (
        HO
        | blocks([False, True, False, False])
        | dict(sample_size=32, block_out_channels=[128, 256, 256, 256]),
        35_746_307,
    ),
    "church-256": (
        HO
        | blocks(LEVELS_256)
        | dict(sample_size=256, block_out_channels=[128, 128, 256, 256, 512, 512]),
        113_673_219,
    ),
    "their training example": (
        blocks(LEVELS_256)
        | dict(sample_size=64, block_out_channels=[128, 128, 256, 256, 512, 512]),
        113_673_219,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_the_same_weights_in_the_same_shapes(name, tmp_path):
    options, count = PUBLISHED[name]
    with torch.device("meta"):
        net = diffusers.UNet2DModel(**options)
    net.save_config(tmp_path)
    network = unet_2d.read_network(tmp_path)
    abstract = shapes(network)
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) == count
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), abstract)
    found = {key: value.shape for key, value in unet_2d.state_of(zeros, network.model).items()}
    assert found == {key: tuple(value.shape) for key, value in net.state_dict().items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(patch_size=2), "model.patch_size is 2, but diffusers' UNet2DModel can only hold 1"),
        (dict(context_dim=8), "model.context_dim is 8"),
        (dict(embedding_dim=8), "model.embedding_dim is 8"),
        (dict(super_resolution=2), "model.super_resolution is 2"),
        (dict(fourier_features=(7,)), "model.fourier_features is"),
        (
            dict(num_heads=2, attention_resolutions=(32,)),
            "model.num_heads is 2, .* heads of the same width",
        ),
        (dict(middle_attention="plain"), "model.middle_attention is 'plain'"),
    ],
)
def test_what_diffusers_lacks_is_refused(change, message):
    model = ModelConfig(channels=8, channel_multipliers=(1, 2), num_groups=4, **change)
    with pytest.raises(UserError, match=message):
        unet_2d.options_of(Network(model, (32, 32, 3), 0))
