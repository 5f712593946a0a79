"""Runs from diffusers' pipelines, and pipelines from runs: the same noise gives the same images.

Needs the `peers` extra.
"""

import contextlib
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.interop import from_diffusers, to_diffusers

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.quick_to_compile,
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

T, N, SIZE = 20, 2, 8
NOISE = np.random.default_rng(1).normal(size=(T + 1, N, SIZE, SIZE, 3)).astype(np.float32)
LAST = T  # its noise is x_T; the step from t has the noise of t


def make_network(out_channels=3):
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=SIZE,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        out_channels=out_channels,
    ).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net


def our_noise(key, t, shape):
    return jnp.asarray(NOISE)[t - 1]


def sampled(run, num_steps=None):
    """Our images, in [0, 1]."""
    if num_steps:
        sample = dataclasses.replace(run.config.sample, num_steps=num_steps)
        run = run._replace(config=dataclasses.replace(run.config, sample=sample))
    draw = run.sample_fn()
    images = draw(run.params, jax.random.key(0), N, x_T=NOISE[LAST], noise=our_noise)
    return np.clip(np.asarray(images) / 2 + 0.5, 0, 1)


@contextlib.contextmanager
def their_noise(monkeypatch, pipeline):
    """Inside `with`, the pipeline draws our noise: x_T first, then that of the step's t."""
    now = {}
    step = type(pipeline.scheduler).step

    def at(self, output, t, *args, **kwargs):
        now["t"] = int(t)
        return step(self, output, t, *args, **kwargs)

    def noise(shape, **kwargs):
        values = NOISE[now.get("t", LAST)]
        return torch.from_numpy(np.moveaxis(values, -1, 1).copy())

    with monkeypatch.context() as patch:
        patch.setattr(type(pipeline.scheduler), "step", at)
        patch.setattr(f"{type(pipeline).__module__}.randn_tensor", noise)
        patch.setattr(f"{type(pipeline.scheduler).__module__}.randn_tensor", noise)
        yield


def drawn(monkeypatch, pipeline, num_steps=T, **options):
    """Their images, in [0, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    with their_noise(monkeypatch, pipeline):
        return pipeline(N, num_inference_steps=num_steps, output_type="np", **options).images


def assert_same_images(found, expected):
    assert 0.05 < np.std(expected) and 0.02 < np.mean((expected > 0) & (expected < 1))
    assert np.abs(found - expected).max() <= 1e-3


CHAIN = dict(num_train_timesteps=T, beta_start=0.01, beta_end=0.3)
THRESHOLD = dict(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1e9)
SCHEDULERS = {
    "their defaults": (dict(num_train_timesteps=T), T),
    "google's": (CHAIN | dict(variance_type="fixed_large"), T),
    "cosine, v": (
        dict(
            num_train_timesteps=T,
            beta_schedule="squaredcos_cap_v2",
            prediction_type="v_prediction",
            clip_sample=False,
        ),
        T,
    ),
    "quadratic, x_0": (CHAIN | dict(beta_schedule="scaled_linear", prediction_type="sample"), T),
    "sigmoid, log variance": (
        CHAIN | dict(beta_schedule="sigmoid", variance_type="fixed_small_log"),
        T,
    ),
    "thresholding": (CHAIN | THRESHOLD, T),
    "thresholding at 1": (CHAIN | dict(thresholding=True), T),
    "zero-SNR, trailing": (
        CHAIN
        | dict(
            rescale_betas_zero_snr=True,
            prediction_type="v_prediction",
            timestep_spacing="trailing",
        ),
        7,
    ),
    "leading": (CHAIN, 6),
    "linspace": (CHAIN | dict(timestep_spacing="linspace"), 7),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_ddpm_pipeline_gives_the_same_images_here(name, monkeypatch, tmp_path):
    options, num_steps = SCHEDULERS[name]
    pipeline = diffusers.DDPMPipeline(make_network(), diffusers.DDPMScheduler(**options))
    pipeline.save_pretrained(tmp_path)
    run = from_diffusers(tmp_path)
    expected = drawn(monkeypatch, pipeline, num_steps)
    found = sampled(run, num_steps)
    assert_same_images(found, expected)
    back = there(run, tmp_path / "back", num_steps)
    assert_same_images(drawn(monkeypatch, back, num_steps), expected)


def there(run, path, num_steps):
    """The run with this number of steps, written and read by diffusers."""
    sample = dataclasses.replace(run.config.sample, num_steps=num_steps)
    run = run._replace(config=dataclasses.replace(run.config, sample=sample))
    to_diffusers(run, path)
    name = json.loads((path / "model_index.json").read_text())["_class_name"]
    return getattr(diffusers, name).from_pretrained(path)


def test_a_learned_variance_gives_the_same_images(monkeypatch, tmp_path):
    scheduler = diffusers.DDPMScheduler(**CHAIN, variance_type="learned_range")
    pipeline = diffusers.DDPMPipeline(make_network(6), scheduler)
    pipeline.save_pretrained(tmp_path)
    run = from_diffusers(tmp_path)
    assert run.config.loss.objective == "hybrid" and run.config.model.learn_variance
    expected = drawn(monkeypatch, pipeline)
    assert_same_images(sampled(run), expected)
    assert_same_images(drawn(monkeypatch, there(run, tmp_path / "back", T)), expected)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("clip", [True, False])
def test_a_ddim_pipeline_gives_the_same_images_here(clip, spacing, monkeypatch, tmp_path):
    scheduler = diffusers.DDIMScheduler(**CHAIN, clip_sample=clip, timestep_spacing=spacing)
    pipeline = diffusers.DDIMPipeline(make_network(), scheduler)
    pipeline.save_pretrained(tmp_path)
    run = from_diffusers(tmp_path)
    assert run.config.sample.num_steps == 20  # 50 or T
    expected = drawn(monkeypatch, pipeline, 5, use_clipped_model_output=True)
    assert_same_images(sampled(run, 5), expected)
    back = there(run, tmp_path / "back", 5)
    found = drawn(monkeypatch, back, 5, use_clipped_model_output=True)
    assert_same_images(found, expected)


def test_old_folders_have_the_components_in_the_root_and_old_names(monkeypatch, tmp_path):
    """The layout of google/ddpm-*: one folder, .bin, query and proj_attn, a file of few options."""
    net = make_network()
    pipeline = diffusers.DDPMPipeline(net, diffusers.DDPMScheduler(**CHAIN))
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, value in net.state_dict().items():
        for new, old in names.items():
            name = name.replace(f".{new}.", f".{old}.")
        state[name] = value
    assert any("proj_attn" in name for name in state)
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    net.save_config(tmp_path)
    scheduler = {"_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1"} | CHAIN
    scheduler |= {"beta_schedule": "linear", "clip_sample": True, "trained_betas": None}
    scheduler |= {"tensor_format": "pt", "variance_type": "fixed_large", "timestep_values": None}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = {"_class_name": "DDPMPipeline", "_diffusers_version": "0.1.1"}
    index |= {"scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    run = from_diffusers(tmp_path)
    assert run.config.sample.variance == "fixed_large"
    pipeline.scheduler = diffusers.DDPMScheduler(**CHAIN, variance_type="fixed_large")
    assert_same_images(sampled(run), drawn(monkeypatch, pipeline))


def test_a_model_that_torch_trained_gives_the_same_images(monkeypatch, tmp_path):
    """As in diffusers' training example: noise, AdamW, EMA, and the EMA weights are saved."""
    from diffusers.training_utils import EMAModel

    net, scheduler = make_network().train(), diffusers.DDPMScheduler(**CHAIN)
    ema = EMAModel(net.parameters(), decay=0.9, model_cls=diffusers.UNet2DModel, model_config={})
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(50):
        shades = torch.rand(16, 3, 1, 1, generator=generator) * 2 - 1
        images = shades.expand(-1, -1, SIZE, SIZE)
        noise = torch.randn(images.shape, generator=generator)
        t = torch.randint(0, T, (16,), generator=generator)
        output = net(scheduler.add_noise(images, noise, t), t).sample
        loss = torch.nn.functional.mse_loss(output, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.step(net.parameters())
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    ema.copy_to(net.parameters())
    pipeline = diffusers.DDPMPipeline(net.eval(), scheduler)
    pipeline.save_pretrained(tmp_path)
    found = sampled(from_diffusers(tmp_path))
    assert_same_images(found, drawn(monkeypatch, pipeline))


def test_a_network_without_a_pipeline_has_their_default_process(tmp_path):
    make_network().save_pretrained(tmp_path)
    run = from_diffusers(tmp_path)
    theirs = diffusers.DDPMScheduler()
    expected = theirs.alphas_cumprod.numpy()
    np.testing.assert_allclose(run.process.alphas_cumprod[1:], expected, rtol=1e-4)
    assert run.config.sample.variance == theirs.config.variance_type
