"""A run on texts, from data to samples, with seven emoji; and one that makes images larger."""

import pathlib

import jax
import numpy as np
import pytest
from mains import run as run_main
from PIL import Image
from test_data_emoji import LIST, needs_font
from tiny import make_config

import ddpm_jax
from ddpm_jax import data
from ddpm_jax.data import cond as conditioning
from ddpm_jax.errors import UserError
from ddpm_jax.pretrained import text_encoder as text
from ddpm_jax.runs.workdir import open_for_reading, read_facts
from ddpm_jax.training.loop import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Sharding info not provided"),
    pytest.mark.loose_promotion(reason="optax's schedules multiply floats with int32 counts"),
    pytest.mark.quick_to_compile,
]

TINY = dict(
    process__num_timesteps=2,
    model__channels=4,
    model__num_groups=2,
    train__num_steps=1,
    eval__num_examples=8,
)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    try:
        text.encoder_directory()
    except UserError as error:
        pytest.skip(str(error))
    path = tmp_path_factory.mktemp("emoji")
    (path / "emoji-test.txt").write_text(LIST, encoding="utf-8")
    return make_config(
        **TINY,
        data__name="emoji",
        data__emoji_test_path=str(path / "emoji-test.txt"),
        data__data_dir=str(path / "data"),
        data__image_size=4,
        data__train_split="train",
        data__test_split="",
        data__text=True,
        model__embedding_dim=384,
        model__context_dim=384,
        train__batch_size=4,
        mesh__data=1,
        sample__guidance=1.0,
    )


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        train(config, root)
    return root


@needs_font
def test_each_image_comes_with_its_own_name_encoded(config):
    dataset = data.open_dataset(config.data)
    names = dataset.train_texts
    assert len(names) == len(dataset.train) >= 4 and dataset.test_texts == ()
    assert set(names) <= {
        line.split(" E", 1)[1].split(" ", 1)[1]
        for line in LIST.splitlines()
        if "fully-qualified     #" in line
    }
    rows, none = conditioning.text_rows(config, dataset)
    assert none == {} and set(rows) == {"embedding", "context", "context_mask"}
    deals = data.Batches(dataset.train, 4, 0, rows=rows)
    batch, indices = deals.batch(0), deals.indices(0)
    wanted = text.conditioning([names[i] for i in indices])
    np.testing.assert_allclose(batch["embedding"], wanted["embedding"], atol=1e-4)
    np.testing.assert_array_equal(batch["image"], dataset.train.read(indices)[0])
    for found, real in zip(batch["context_mask"], wanted["context_mask"], strict=True):
        assert found.sum() == real.sum()
    slices = [data.Batches(dataset.train, 4, 0, False, i, 2, rows).batch(0) for i in range(2)]
    together = np.concatenate([part["context"] for part in slices])
    np.testing.assert_array_equal(together, batch["context"])


@needs_font
def test_a_run_on_texts_is_loaded_and_draws_what_it_is_told(run, tmp_path):
    assert read_facts(open_for_reading(run)).text == "all-MiniLM-L6-v2"
    done = run_main(
        "sample", f"--workdir={run}", "--n=2", "--text=a red heart", f"--out={tmp_path / 'out'}"
    )
    assert done.returncode == 0, done.stderr
    images = np.load(tmp_path / "out.npz")["images"]
    sample, params = ddpm_jax.load(run)
    rng = np.random.default_rng(0)
    rows = text.conditioning(["a red heart"] * 2)
    found = np.asarray(sample(params, jax.random.key(0), 2, rows))
    assert np.abs(images - np.clip(np.round((found + 1) * 127.5), 0, 255)).max() <= 1
    # after one step the text says little; with weights that are not zero it does
    params = jax.tree.map(lambda w: w + 0.2 * rng.normal(size=w.shape).astype(w.dtype), params)
    heart, flag = (
        np.asarray(sample(params, jax.random.key(0), 2, text.conditioning([words] * 2)))
        for words in ("a red heart", "flag: Norway")
    )
    assert np.abs(heart - flag).max() > 0.01


def test_names_are_asked_of_a_set_that_has_none():
    with pytest.raises(UserError, match="data.text is True, but the images of digits have no name"):
        data.open_dataset(make_config(data__text=True).data)


def test_small_images_are_made_larger_held_out_ones_or_one_of_the_users(tmp_path):
    root = tmp_path / "run"
    train(make_config(**TINY, model__super_resolution=2), root)
    done = run_main("sample", f"--workdir={root}", "--n=3", f"--out={tmp_path / 'held_out'}")
    assert done.returncode == 0, done.stderr
    arrays = np.load(tmp_path / "held_out.npz")
    images, _ = data.open_dataset(make_config().data).test.read(np.arange(3))
    means = images.reshape(3, 4, 2, 4, 2).mean((2, 4))
    np.testing.assert_allclose(arrays["lowres"][:, ::2, ::2, 0], means, atol=1)
    assert arrays["images"].shape == (3, 8, 8, 1)

    small = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    Image.fromarray(small).save(tmp_path / "small.png")
    flags = (f"--workdir={root}", "--n=2", f"--out={tmp_path / 'own'}")
    done = run_main("sample", *flags, f"--image={tmp_path / 'small.png'}")
    assert done.returncode == 0, done.stderr
    lowres = np.load(tmp_path / "own.npz")["lowres"]
    np.testing.assert_array_equal(lowres[1, 1::2, 1::2, 0], small)

    refused = run_main("sample", *flags, "--text=a seven")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1] == (
        "error: --text='a seven' is given, but the model takes no text (data.text is False)"
    )


@needs_font
def test_the_cache_of_texts_lies_in_the_data_directory(config, run):
    (path,) = (pathlib.Path(config.data.data_dir) / "encoded_texts").iterdir()
    assert path.name.startswith("all-MiniLM-L6-v2-")
