"""Side by side with transformers' BERT on PyTorch, with the same weights and its own tokenizer.

Needs the `peers` extra.
"""

import numpy as np
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.pretrained import text_encoder as text

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
try:
    ENCODER = str(text.encoder_directory())
except UserError as error:
    pytest.skip(str(error), allow_module_level=True)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # transformers' own

TEXTS = [
    "heart",
    "a red heart",
    "The quick brown fox jumps over the lazy dog.",
    "flag: Bosnia & Herzegovina",
    "Crème brûlée, naïve façade",
    "antidisestablishmentarianism",
    "woman: medium-dark skin tone, curly hair",
    "你好 world 🙂",
    "Denoising diffusion probabilistic models (Ho et al., 2020) learn to undo noise. " * 4,
    "eight o'clock; one-thirty... 12:45!",
]


def test_hidden_states_and_sentence_vectors_are_those_of_transformers():
    tokenizer = transformers.AutoTokenizer.from_pretrained(ENCODER)
    model = transformers.BertModel.from_pretrained(ENCODER, attn_implementation="eager").eval()
    context, mask, pooled = text.encode(TEXTS)
    assert len(set(mask.sum(1))) >= 8 and mask.sum(1).max() > 60
    theirs = tokenizer(TEXTS, padding=True, truncation=True, max_length=256, return_tensors="pt")
    np.testing.assert_array_equal(theirs["attention_mask"].numpy().astype(bool), mask)
    with torch.no_grad():
        hidden = model(**theirs).last_hidden_state
    np.testing.assert_allclose(context[mask], hidden.numpy()[mask], atol=1e-5)
    weight = theirs["attention_mask"][:, :, None].float()
    mean = (hidden * weight).sum(1) / weight.sum(1)
    wanted = torch.nn.functional.normalize(mean, dim=1).numpy()
    np.testing.assert_allclose(pooled, wanted, atol=1e-5)
