"""Folders of diffusers: options that we lack, broken and hostile files, and the model card."""

import dataclasses
import json
import os
import pickle
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import build
from ddpm_jax.config import DataConfig, from_dict
from ddpm_jax.errors import UserError
from ddpm_jax.interop import from_diffusers, to_diffusers
from ddpm_jax.pretrained import torch_weights
from ddpm_jax.runs import Run
from ddpm_jax.runs.workdir import DatasetFacts

pytest.importorskip("safetensors")

pytestmark = [
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
    pytest.mark.quick_to_compile,
]

CONFIG = {
    "data": {"name": "cifar10"},
    "process": {"num_timesteps": 40},
    "model": {
        "channels": 8,
        "channel_multipliers": (1, 2),
        "attention_resolutions": (4,),
        "num_groups": 4,
        "num_res_blocks": 1,
    },
}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def make_run(facts=None, **changes):
    """A run with random weights; `section={field: value}` changes its config."""
    facts = facts or DatasetFacts((8, 8, 3), 0, ())
    sections = {key: CONFIG.get(key, {}) | changes.get(key, {}) for key in CONFIG | changes}
    config = from_dict(sections)
    model = build.model(config.model, facts.image_shape, facts.num_classes)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
        jax.eval_shape(model.init, jax.random.key(0)),
    )
    return Run(config, facts, build.process(config.process), model, params, 7)


@pytest.fixture(scope="module")
def run():
    return make_run()


@pytest.fixture
def folder(run, tmp_path):
    """A pipeline in components, written by us."""
    to_diffusers(run, tmp_path / "pipeline")
    return tmp_path / "pipeline"


def refusal(path):
    """The one line that refuses a folder."""
    with pytest.raises(UserError) as error:
        from_diffusers(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def change(path, **options):
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


def test_a_run_comes_back_bit_for_bit(run, folder):
    back = from_diffusers(folder)
    jax.tree.map(np.testing.assert_array_equal, back.params, run.params)
    same = dataclasses.replace(run.config.model, dropout=0.1)
    assert back.config.model == same and back.config.loss.kind == "eps"
    process = dataclasses.replace(run.config.process, beta_1=0.0025, beta_T=0.5)
    assert back.config.process == process
    sample = dataclasses.replace(run.config.sample, timesteps="trailing")
    assert back.config.sample == dataclasses.replace(sample, timesteps="uniform")
    data = DataConfig(name="folder", image_size=8, channels=3)
    assert back.config.data == data and not back.facts.known


def test_half_precision_becomes_float32(run, folder):
    rewritten(
        folder / "unet" / WEIGHTS,
        lambda state: state.update(
            {name: value.astype(np.float16) for name, value in state.items()},
            **{"conv_in.weight": state["conv_in.weight"].astype(jnp.bfloat16)},
        ),
    )
    back = from_diffusers(folder)
    for a, b in zip(jax.tree.leaves(back.params), jax.tree.leaves(run.params), strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=2**-8, atol=1e-6)


def test_images_that_are_not_square_come_from_an_array(tmp_path):
    to_diffusers(make_run(DatasetFacts((8, 16, 1), 0, ())), tmp_path / "out")
    back = from_diffusers(tmp_path / "out")
    assert back.shape == (8, 16, 1)
    assert back.config.data == DataConfig(name="array", image_size=0, channels=1)


def test_a_ddpm_pipeline_may_have_the_scheduler_of_ddim(folder):
    file = folder / "scheduler" / "scheduler_config.json"
    change(file, _class_name="DDIMScheduler", timestep_spacing="leading", num_train_timesteps=60)
    sample = from_diffusers(folder).config.sample
    assert (sample.sampler, sample.num_steps, sample.timesteps) == ("ddim", 50, "leading")
    change(file, _class_name="DDPMScheduler", num_train_timesteps=4000, beta_end=0.005)
    sample = from_diffusers(folder).config.sample  # 1000 steps are the pipeline's default
    assert (sample.sampler, sample.num_steps, sample.variance) == ("ancestral", 1000, "fixed_large")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("act_fn", "gelu", "act_fn = 'gelu' cannot be represented; only 'silu' or 'swish' can"),
        ("time_embedding_type", "fourier", "time_embedding_type = 'fourier'"),
        ("time_embedding_dim", 64, "time_embedding_dim = 64 .* only None or 32 can"),
        ("freq_shift", 2, "freq_shift = 2 cannot be represented; only 0 or 1 can"),
        ("downsample_padding", 2, "downsample_padding = 2"),
        ("center_input_sample", True, "center_input_sample = True"),
        ("mid_block_type", None, "mid_block_type = None"),
        ("mid_block_scale_factor", 1.4, "mid_block_scale_factor = 1.4"),
        ("class_embed_type", "timestep", "class_embed_type = 'timestep'"),
        ("resnet_time_scale_shift", "spatial", "resnet_time_scale_shift = 'spatial'"),
        ("attn_norm_num_groups", 2, "attn_norm_num_groups = 2 .* only None or 4"),
        ("block_out_channels", [8, 12], r"block_out_channels = \[8, 12\] .* multiple of the first"),
        ("block_out_channels", "many", "block_out_channels = 'many' .* a list of whole numbers"),
        ("layers_per_block", 0, "layers_per_block = 0 .* at least 1"),
        ("norm_eps", "small", "norm_eps = 'small'"),
        ("sample_size", None, "sample_size = None .* set it to the height and width"),
        ("out_channels", 4, "out_channels = 4 .* only 3 or 6 can"),
        ("down_block_types", ["SkipDownBlock2D"] * 2, "down_block_types = 'SkipDownBlock2D'"),
        ("up_block_types", ["UpBlock2D"] * 2, "up_block_types = .* both halves"),
        ("up_block_types", ["UpBlock2D"], "up_block_types = .* it must have 2 names"),
        (
            "upsample_type",
            "resnet",
            "type = 'conv', upsample_type = 'resnet' with these",
        ),
        ("upsample_typ", "conv", r"unknown option in .*config.json: 'upsample_typ'; did you mean"),
        ("_class_name", "UNet1DModel", "_class_name is 'UNet1DModel'; only 'UNet2DModel'"),
    ],
)
def test_options_of_the_network_that_we_lack_are_refused(folder, option, value, message):
    file = folder / "unet" / "config.json"
    change(file, **{option: value})
    with pytest.raises(UserError, match=message) as error:
        from_diffusers(folder)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(_class_name="PNDMScheduler"), "_class_name = 'PNDMScheduler'"),
        (dict(beta_schedule="laplace"), "beta_schedule = 'laplace' .* only linear, scaled_linear"),
        (dict(prediction_type="flow"), "prediction_type = 'flow'"),
        (dict(trained_betas=[0.1]), "trained_betas = "),
        (dict(num_train_timesteps=0.5), "num_train_timesteps = 0.5"),
        (dict(beta_end=2.0), "beta_end = 2.0"),
        (dict(variance_type="learned"), "variance_type = 'learned'"),
        (dict(variance_type="learned_range"), "variance_type = 'learned_range' .* 2 in_channels"),
        (dict(variance_type="fixed_large_log"), "variance_type = 'fixed_large_log'"),
        (dict(clip_sample_range=2.0), "clip_sample_range = 2.0 .* only 1.0"),
        (dict(thresholding=True, sample_max_value=1.5), "sample_max_value = 1.5 .* or 1e\\+06"),
        (dict(timestep_spacing="karras"), "timestep_spacing = 'karras'"),
        (dict(timestep_spacing="leading", steps_offset=1), "steps_offset = 1"),
        (dict(rescale_betas_zero_snr=True), "prediction_type = 'epsilon' .* no eps to predict"),
        (dict(steps=3), "unknown option in .*scheduler_config.json: 'steps'"),
        (
            dict(
                _class_name="DDIMScheduler", num_train_timesteps=1000, timestep_spacing="linspace"
            ),
            "timestep_spacing = 'linspace'",
        ),
        (dict(_class_name="DDIMScheduler", set_alpha_to_one=False), "set_alpha_to_one = False"),
    ],
)
def test_options_of_the_scheduler_that_we_lack_are_refused(folder, options, message):
    file = folder / "scheduler" / "scheduler_config.json"
    change(file, **options)
    with pytest.raises(UserError, match=message) as error:
        from_diffusers(folder)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_other_pipelines_and_places_are_refused(folder, tmp_path):
    index = folder / "model_index.json"
    change(index, unet=["../../other", "UNet2DModel"])  # a class, never a place
    assert "unet = ['../../other', 'UNet2DModel'] cannot be represented" in refusal(folder)
    change(index, unet=["diffusers", "UNet2DModel"], vqvae=["diffusers", "VQModel"])
    assert "vqvae = " in refusal(folder)
    index.write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert "_class_name = 'StableDiffusionPipeline'" in refusal(folder)
    index.write_text("[1]")
    assert "must hold an object" in refusal(folder)
    index.write_text("{")
    assert "cannot be read" in refusal(folder)
    assert "does not exist" in refusal(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "neither model_index.json nor config.json" in refusal(tmp_path / "empty")
    with pytest.raises(UserError, match="revision 'main' is given, but .* is a path"):
        from_diffusers(folder, revision="main")


def rewritten(path, change):
    """Write the weights again, after `change` of {name: array}."""
    import safetensors.numpy

    state = safetensors.numpy.load_file(path)
    change(state)
    safetensors.numpy.save_file(state, path)


class Bomb:
    def __reduce__(self):
        return os.system, ("echo > exploded",)


def test_broken_weights_are_refused(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = folder / "unet" / WEIGHTS
    whole, name = path.read_bytes(), "conv_in.weight"
    rewritten(path, lambda state: state.pop(name))
    assert "has no weight 'conv_in.weight'" in refusal(folder)
    path.write_bytes(whole)
    rewritten(path, lambda state: state.update({name: state[name].transpose(1, 0, 2, 3).copy()}))
    assert "conv_in.weight has the shape [3, 8, 3, 3], but this network needs [8, 3, 3, 3]" in (
        refusal(folder)
    )
    path.write_bytes(whole)
    rewritten(path, lambda state: state.update(spare=np.zeros(1, np.float32)))
    assert "has a weight that nothing uses: 'spare'" in refusal(folder)

    size = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + size])
    header[name]["data_offsets"] = [0, 2**40]
    lying = json.dumps(header).encode()
    huge = struct.pack("<Q", 2**62)
    damaged = [
        *(whole[:n] for n in (0, 4, 8 + size // 2, 8 + size, len(whole) - 1)),
        struct.pack("<Q", len(lying)) + lying + whole[8 + size :],
        huge + whole[8:],
        whole[:8] + b"[" + whole[9:],
        whole.replace(b"F32", b"F99", 1),
        whole + b"more",
    ]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read") as error:
            torch_weights.read(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert "cannot be read" in refusal(folder)

    path.unlink()
    assert "has no weights" in refusal(folder)
    path.with_suffix(".bin").write_bytes(pickle.dumps({name: Bomb()}))
    assert "neither of torch's formats" in refusal(folder)
    assert not (tmp_path / "exploded").exists()


def test_the_hub_is_asked_only_for_what_is_no_path(monkeypatch):
    with pytest.raises(UserError, match="runs/none/deep does not exist; pass a folder, or an id"):
        from_diffusers("runs/none/deep")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it were not installed
    with pytest.raises(UserError, match="install the package huggingface_hub"):
        from_diffusers("google/ddpm-cat-256")


@pytest.mark.slow
def test_a_model_of_the_hub_is_read_from_its_cache(folder, tmp_path):
    pytest.importorskip("huggingface_hub")
    revision = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "hub" / "models--someone--digits"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(revision)
    (cache / "snapshots").mkdir()
    folder.rename(cache / "snapshots" / revision)
    program = (
        "from ddpm_jax.interop import from_diffusers, hub\n"
        "print(hub.locate('someone/digits'), from_diffusers('someone/digits').shape)\n"
        "try: hub.locate('someone/others')\n"
        "except ValueError as error: print(type(error).__name__, error)"
    )
    offline = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=offline)
    first, second = done.stdout.strip().splitlines()
    assert str(cache / "snapshots" / revision) in first and f"revision='{revision}'" in first
    assert first.endswith("(8, 8, 3)")
    assert second.startswith("PassingError someone/others is no path, and the Hub does not send")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model={"patch_size": 2}), "model.patch_size is 2"),
        (dict(process={"schedule": "constant", "num_timesteps": 40}), "process.schedule is 'const"),
        (dict(sample={"sampler": "ddim", "eta": 0.5}), "sample.eta is 0.5"),
        (dict(sample={"sampler": "ddim", "num_steps": 7}), "sample.timesteps is 'uniform'"),
        (dict(sample={"num_steps": 7, "timesteps": "karras"}), "sample.timesteps is 'karras'"),
        (dict(sample={"guidance": 1.0}), "sample.guidance is 1.0"),
    ],
)
def test_runs_that_diffusers_cannot_hold_are_refused(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        to_diffusers(make_run(**changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_latents_learned_schedules_and_full_folders_are_refused(run, tmp_path):
    with pytest.raises(UserError, match="data.codec makes this a run on latents"):
        to_diffusers(run._replace(codec=object()), tmp_path / "out")
    process = dataclasses.replace(run.config.process, schedule="learned")
    learned = run._replace(config=dataclasses.replace(run.config, process=process))
    with pytest.raises(UserError, match="process.schedule is 'learned'"):
        to_diffusers(learned, tmp_path / "out")
    with pytest.raises(UserError, match="is not an empty folder"):
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "file").touch()
        to_diffusers(run, tmp_path / "full")


def test_the_card_has_the_front_matter_of_the_hub(run, tmp_path):
    rows = [
        {"name": "fid50k_train", "value": 3.17, "error": 0.02, "n": 50_000},
        {"name": "precision50k_train", "value": 0.7, "error": None, "n": 50_000},
        {"name": "recall50k_train", "value": None, "error": None, "n": 50_000},
    ]
    evaluation = {"rows": rows, "samples": "3 x 50,000 by ddim"}
    to_diffusers(run, tmp_path / "out", licence="apache-2.0", evaluation=evaluation)
    text = (tmp_path / "out" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    for line in (
        'license: "apache-2.0"',
        "library_name: diffusers",
        "pipeline_tag: unconditional-image-generation",
        'datasets: ["cifar10"]',
        'metrics: ["fid"]',
    ):
        assert line in front.splitlines()
    assert '{type: fid, name: "fid50k_train", value: 3.17}' in front
    assert "| precision50k_train | 0.7 |  | 50,000 |" in body and "recall" not in body
    assert "DDPMPipeline.from_pretrained" in body and "from_diffusers" in body
    assert "samples: 3 x 50,000 by ddim" in body
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard(text)
    assert card.data.license == "apache-2.0" and card.data.library_name == "diffusers"
    assert [result.metric_value for result in card.data.eval_results] == [3.17]


def test_the_card_says_how_to_draw_classes(tmp_path):
    facts = DatasetFacts((8, 8, 3), 2, ("cat", "dog"))
    run = make_run(facts, model={"class_conditional": True})
    to_diffusers(run, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "The labels are: 0: cat; 1: dog; 2: no class." in text and "class_labels=labels" in text
    back = from_diffusers(tmp_path / "out")
    assert back.facts.num_classes == 3 and not back.config.model.null_class
    assert back.config.loss.p_uncond == 0
