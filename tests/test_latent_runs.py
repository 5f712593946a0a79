"""Runs of an autoencoder, and runs on its latents: training, resuming, sampling, every main."""

import json
import shutil

import jax
import numpy as np
import pytest
from jax import export
from mains import run as run_main
from safetensors.numpy import load_file
from tiny import make_config

import ddpm_jax
from ddpm_jax import data
from ddpm_jax.errors import UserError
from ddpm_jax.interop import to_stablehlo
from ddpm_jax.pixels import to_uint8, to_x_0
from ddpm_jax.runs import metrics, open_run
from ddpm_jax.runs.codec import open_codec

pytestmark = [
    pytest.mark.slow,
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
    pytest.mark.quick_to_compile,
]


def train(config, root):
    """Train; the mark does not cover fixtures."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return ddpm_jax.train(config, root)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("latents")


def autoencoder_config(place, **changes):
    return make_config(
        **{
            "data__data_dir": str(place / "data"),
            "model__name": "autoencoder",
            "model__channel_multipliers": (1, 1),
            "model__latent_channels": 2,
            "train__num_steps": 4,
            "train__checkpoint_every": 2,
            "autoencoder__reconstruction": "gaussian",
            "autoencoder__perceptual_weight": 0.1,
            "autoencoder__discriminator_weight": 0.5,
            "autoencoder__discriminator_start": 2,
            "autoencoder__discriminator_channels": 4,
            "autoencoder__discriminator_layers": 1,
        }
        | changes
    )


def latent_config(place, **changes):
    return make_config(
        **{
            "data__data_dir": str(place / "data"),
            "data__codec": str(place / "autoencoder"),
            "data__flip": True,
            "model__class_conditional": True,
            "sample__num_steps": 4,
        }
        | changes
    )


@pytest.fixture(scope="module")
def codec(place):
    train(autoencoder_config(place), place / "autoencoder")
    return open_codec(place / "autoencoder", (8, 8, 1))


@pytest.fixture(scope="module")
def run(place, codec):
    train(latent_config(place), place / "run")
    return open_run(place / "run")


def test_an_autoencoder_logs_its_parts_and_draws_reconstructions(place, codec, capsys):
    rows = metrics.read(place / "autoencoder" / "metrics.jsonl")
    assert {"reconstruction", "kl", "perceptual", "adversarial", "discriminator"} <= rows[0].keys()
    assert {"held_out_error", "held_out_psnr", "held_out_kl"} <= rows[-1].keys()
    assert "loss_t_quartile_1" not in rows[0]
    assert (place / "autoencoder" / "samples" / "step_0000004_ema.png").exists()
    again = train(autoencoder_config(place), place / "autoencoder")
    said = capsys.readouterr().out
    assert "resumed at step 4" in said and "compiled" not in said
    assert f"held-out psnr: {again.figures['held_out_psnr']:.3f}" in said
    assert "reconstructions: " in said


def test_an_autoencoder_resumes_bit_for_bit(place, codec):
    train(autoencoder_config(place, train__num_steps=2), place / "halves")
    found = train(autoencoder_config(place), place / "halves").state
    whole = train(autoencoder_config(place), place / "whole").state
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_on_latents_resumes_bit_for_bit(place, run):
    train(latent_config(place, train__num_steps=2), place / "half_run")
    train(latent_config(place), place / "half_run")
    found = open_run(place / "half_run")
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(run.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert found.facts == run.facts and len(run.facts.latent_mean) == 2


def test_samples_are_the_decoded_images_of_latents(place, run, codec):
    sample, params = ddpm_jax.load(place / "run")
    cond = {"label": np.array([1, 2, 3], np.int32)}
    images = np.asarray(sample(params, jax.random.key(0), 3, cond))
    assert images.shape == (3, 8, 8, 1) and np.abs(images).max() <= 1.0
    assert run.codec.latent_shape == (4, 4, 2) and run.facts.image_shape == (8, 8, 1)
    draw = ddpm_jax.make_sample(
        run.process,
        run.model.apply,
        shape=(4, 4, 2),
        sampler=ddpm_jax.samplers.ancestral(run.process, variance="fixed_large"),
        clip_x_0=False,
        timesteps=ddpm_jax.timesteps.uniform(8, 4),
    )
    found = np.asarray(draw(run.params, jax.random.key(0), 3, cond))
    np.testing.assert_allclose(images, np.clip(run.codec.decode(found), -1, 1), atol=1e-5)


def test_the_encoder_sees_the_pixels_of_the_run(place, run, codec):
    images, _ = data.open_dataset(run.config.data).train.read(np.arange(1000))
    z = np.asarray(run.encode(to_x_0(images)))
    assert z.shape == (1000, 4, 4, 2)
    np.testing.assert_allclose(z.mean(axis=(0, 1, 2)), 0.0, atol=0.3)
    mean, _ = codec.encoder(codec.params, to_x_0(images))
    m, s = np.asarray(run.facts.latent_mean), np.asarray(run.facts.latent_deviation)
    np.testing.assert_allclose(z, (np.asarray(mean) - m) / s, atol=1e-4)
    back = codec.decoder(codec.params, jax.numpy.asarray(z * s + m, jax.numpy.float32))
    np.testing.assert_allclose(run.decode(z), np.clip(back, -1, 1), atol=1e-4)


def test_every_main_works_on_latents_and_shows_images(place, run):
    flag = f"--workdir={place / 'run'}"
    done = run_main("sample", flag, "--n=4", "--guidance=1", f"--out={place / 'drawn'}")
    assert done.returncode == 0, done.stderr
    assert np.load(place / "drawn.npz")["images"].shape == (4, 8, 8, 1)

    done = run_main("evaluate", flag, "--n=80", "--seeds=2", "--num_steps=2")
    assert done.returncode == 0, done.stderr
    rows = json.loads((place / "run" / "evaluate.json").read_text())["rows"]
    names = {row["name"] for row in rows}
    assert "fd80_train" in names and not any(name.startswith("bits") for name in names)

    for edit in ("inpaint", "interpolate", "sdedit"):
        more = ["--mask=left", "--num_resamples=1"] if edit == "inpaint" else []
        out = place / edit
        done = run_main("edit", flag, f"--edit={edit}", "--n=2", f"--out={out}", *more)
        assert done.returncode == 0, done.stderr
        assert np.load(f"{out}.npz")["images"].shape[2:] == (8, 8, 1)
    config = "--config=experiments/digits.py"
    done = run_main("figures", config, flag, f"--out={place / 'figures'}")
    assert done.returncode == 0, done.stderr
    assert (place / "figures" / "reverse.png").exists()


@pytest.mark.parametrize("more", [["--bound_images=8"], ["--ode=2"]])
def test_bits_per_dim_of_latents_are_refused_by_name(place, run, more):
    done = run_main("evaluate", f"--workdir={place / 'run'}", *more)
    assert done.returncode == 2
    assert "bits/dim are of pixels, but the run is on the latents of data.codec" in done.stderr


def test_a_classifier_of_noisy_latents_guides(place, run):
    config = latent_config(place, model__name="classifier", model__class_conditional=False)
    train(config, place / "judge")
    sample, params = ddpm_jax.load(place / "run", classifier=place / "judge")
    cond = {"label": np.array([1, 2], np.int32)}
    assert sample(params, jax.random.key(0), 2, cond).shape == (2, 8, 8, 1)
    pixels = dict(data__codec="", model__name="classifier", model__class_conditional=False)
    train(latent_config(place, **pixels), place / "judge_of_pixels")
    with pytest.raises(UserError, match="its codec is none"):
        ddpm_jax.load(place / "run", classifier=place / "judge_of_pixels")


def test_the_monitor_judges_images(place, run):
    changes = dict(eval__samples_every=4, eval__num_samples=80, eval__num_steps=2)
    train(latent_config(place, **changes), place / "watched")
    (row,) = [r for r in metrics.read(place / "watched" / "metrics.jsonl") if "fd80_train" in r]
    assert row["fd80_train"] > 0


def test_what_is_no_codec_of_these_data_is_refused_before_any_work(place, codec, run):
    def said(**changes):
        with pytest.raises(UserError) as caught:
            train(latent_config(place, **changes), place / "refused")
        assert not (place / "refused").exists() and "\n" not in str(caught.value)
        return str(caught.value)

    nowhere = str(place / "nowhere")
    assert f"data.codec: {nowhere} is not the work directory" in said(data__codec=nowhere)
    words = "is a run of model.name='unet'; pass the work directory of an autoencoder"
    assert words in said(data__codec=str(place / "run"))
    assert "encodes images of (8, 8, 1), but the data have (16, 16, 1)" in said(data__image_size=16)
    assert "encodes images of (8, 8, 1), but the data have (8, 8, 3)" in said(data__channels=3)
    for main in ("sample", "evaluate"):
        done = run_main(main, f"--workdir={place / 'autoencoder'}")
        assert done.returncode == 2 and "model.name is 'autoencoder'" in done.stderr


def test_a_codec_that_moved_is_found_by_its_new_name_to_resume(place, run):
    shutil.copytree(place / "run", place / "moved_run")
    shutil.copytree(place / "autoencoder", place / "moved")
    config = latent_config(place, data__codec=str(place / "moved"), train__num_steps=6)
    train(config, place / "moved_run")
    assert open_run(place / "moved_run").step == 6


def test_a_run_is_opened_from_any_directory_and_says_where_its_codec_was(place, run, monkeypatch):
    config = latent_config(place, data__codec="autoencoder")
    monkeypatch.chdir(place)
    train(config, place / "by_relative_path")
    monkeypatch.chdir("/")
    assert open_run(place / "by_relative_path").facts.codec == run.facts.codec
    (place / "autoencoder").rename(place / "elsewhere")
    try:
        with pytest.raises(UserError, match="data.codec: .*autoencoder is not .* config.json"):
            ddpm_jax.load(place / "by_relative_path")
    finally:
        (place / "elsewhere").rename(place / "autoencoder")


def test_a_changed_codec_is_refused(place, run):
    shutil.copytree(place / "autoencoder", place / "changed")
    train(autoencoder_config(place, train__num_steps=6), place / "changed")
    config = latent_config(place, data__codec=str(place / "changed"))
    shutil.copytree(place / "run", place / "stale")
    with pytest.raises(UserError, match="the codec '.*' is now '.*' .data.codec..; bring the old"):
        train(config, place / "stale")
    path = place / "stale" / "config.json"
    path.write_text(path.read_text().replace(str(place / "autoencoder"), str(place / "changed")))
    with pytest.raises(UserError, match="has other weights than when .* was trained"):
        ddpm_jax.load(place / "stale")


def test_an_exported_sampler_decodes_its_latents(place, run):
    folder = to_stablehlo(run, place / "sampler", platforms=["cpu"])
    program = export.deserialize(bytearray((folder / "sampler.bin").read_bytes()))
    weights = load_file(folder / "weights.safetensors")
    assert any(name.startswith("codec/decoder/") for name in weights)
    assert not any(name.startswith("codec/encoder/") for name in weights)
    sample, params = ddpm_jax.load(place / "run")
    label = np.array([1, 2, 3], np.int32)
    expected = to_uint8(sample(params, jax.random.key(0), 3, {"label": label}))
    key = jax.random.key_data(jax.random.key(0))
    found = program.call(weights, key, np.arange(3), label=label, guidance=0.0)
    np.testing.assert_array_equal(np.asarray(found), expected)
