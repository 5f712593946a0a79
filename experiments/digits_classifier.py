"""A classifier of noisy digits. It can guide the model of `digits.py`, which receives no labels.

Command:  python -m experiments.train_classifier --config=experiments/digits_classifier.py
          python -m experiments.sample --workdir=runs/digits --label=3
          --classifier=runs/digits_classifier --classifier_scale=3
Paper:    Dhariwal & Nichol 2021, section 4.1.
Measured: held-out accuracy 0.90, 0.47, 0.22, 0.11 for the four quarters of t, from clean to noise,
          after 600 steps. The training took a minute and a half with compilation, on two cores of
          a shared machine (2026-11-23, jax 0.10.2). With --classifier_scale=3, 39 of 40 samples
          (four per class) show the requested class, as judged by an SVM fitted to the real digits.
"""

import ml_collections

from experiments import digits


def get_config() -> ml_collections.ConfigDict:
    """Return the config."""
    config = digits.get_config()
    config.model.name = "classifier"
    config.model.channel_multipliers = (1, 2, 2)
    config.model.num_res_blocks = 1
    config.model.dropout = 0.1
    config.optim.learning_rate = 3e-3
    config.train.num_steps = 600
    config.train.checkpoint_every = 200
    return config
