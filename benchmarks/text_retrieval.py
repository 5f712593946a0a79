"""Do samples show what their texts say? On a trained run of emoji_text.py:small.

    python -m benchmarks.text_retrieval --workdir=runs/emoji_text --out=docs/figures/text.png

The script draws 64 names and samples a picture from each name. It matches each sample with the true
pictures of these 64 names, by the root mean square distance of pixels. top-1 is how often the
nearest picture is the right one (chance: 1/64). top-5 is how often the right one is among the
nearest five (chance: 5/64).

It does this for names of the training set and for held-out names. The model may know the pictures
of training names by heart; it has never seen those of held-out names. The picture of --out has a
row for each of --prompts.
"""

import pathlib

import jax
import numpy as np
from absl import flags

from benchmarks.measures import own_ranks
from ddpm_jax import data, runs
from ddpm_jax.data.cond import cond_names
from ddpm_jax.errors import UserError
from ddpm_jax.figures import grids
from ddpm_jax.pixels import to_uint8, to_x_0
from ddpm_jax.pretrained import text_encoder
from ddpm_jax.runs.workdir import open_for_reading, read_config
from ddpm_jax.sampling import sample_in_chunks
from experiments import command

WORKDIR = flags.DEFINE_string("workdir", None, "Work directory of a trained run of emoji_text.")
N = flags.DEFINE_integer("n", 64, "Number of names from each split.", lower_bound=5)
WEIGHTS = flags.DEFINE_list("weights", ["0", "1", "3"], "Weights w of guidance to measure.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Number of seeds; each samples the same names again.")
PROMPTS = flags.DEFINE_list(
    "prompts",
    ["a red heart", "red apple", "blue circle", "flag: France"]  # or nearly so, in training
    + ["tomato", "grinning face", "woman dancing", "flag: Peru"],  # held out
    "Texts of the picture; each has a row with samples at each w.",
)
OUT = flags.DEFINE_string("out", None, "File of the picture (PNG). Default: no picture.")
flags.mark_flag_as_required("workdir")

NAMES_SEED = 0
LENGTH = 16  # tokens that texts are padded to, so that all calls share one program
SAMPLER = {"sampler": "dpm_solver_pp_2m", "timesteps": "karras", "num_steps": 20}
TOPS = (1, 5)
SHOWN = 8  # samples of a prompt


def main() -> None:
    config = read_config(open_for_reading(WORKDIR.value))
    if not config.data.text:
        raise UserError(
            f"--workdir={WORKDIR.value} is a run without texts (data.text is False); train "
            "experiments/emoji_text.py:small"
        )
    dataset = data.open_dataset(config.data)
    splits = {
        "training": (dataset.train, dataset.train_texts),
        "held-out": (dataset.test, dataset.test_texts),
    }
    rng = np.random.default_rng(NAMES_SEED)
    chosen = {}
    for name, (source, texts) in splits.items():
        rows = rng.permutation(len(texts))[: N.value]
        pictures, _ = source.read(rows)
        chosen[name] = (to_x_0(pictures), _cond(config, [texts[row] for row in rows]))
        print(f"{name}: {len(rows)} of {len(texts)} names")

    print(f"chance: {', '.join(f'top-{k} {100 * k / N.value:.1f} %' for k in TOPS)}")
    print("| names | w | " + " | ".join(f"top-{k}, %" for k in TOPS) + " |\n|---|---|---|---|")
    shown = []
    for w in map(float, WEIGHTS.value):
        sample, params = runs.load(WORKDIR.value, sample=SAMPLER | {"guidance": w})
        for name, (pictures, cond) in chosen.items():
            ranks = []
            for seed in range(SEEDS.value):
                images = _draw(sample, params, seed, cond)
                ranks.append(own_ranks(images, pictures))
            cells = []
            for k in TOPS:
                hits = 100 * np.mean(np.stack(ranks) < k, axis=0)  # per name, over the seeds
                error = hits.std(ddof=1) / np.sqrt(len(hits))
                cells.append(f"{hits.mean():.1f} ± {error:.1f}")
            print(f"| {name} | {w:g} | " + " | ".join(cells) + " |", flush=True)
        if OUT.value:
            texts = [prompt for prompt in PROMPTS.value for _ in range(SHOWN)]
            images = _draw(sample, params, 0, _cond(config, texts))
            shown.append(to_uint8(images).reshape(len(PROMPTS.value), SHOWN, *images.shape[1:]))
    if OUT.value:
        rows = np.concatenate(shown, axis=1)  # a row for each prompt, w after w
        picture = grids.make_grid(
            rows.reshape(-1, *rows.shape[2:]),
            columns=rows.shape[1],
            side=32,
            column_labels=[f"w={w}" for w in WEIGHTS.value for _ in range(SHOWN)],
            row_labels=PROMPTS.value,
        )
        grids.save_png(pathlib.Path(OUT.value), picture)


def _draw(sample, params, seed: int, cond: dict[str, np.ndarray]) -> np.ndarray:
    """Return an image for each row of cond; all calls have one size and compile once."""
    n = len(cond["embedding"])
    return np.concatenate(
        list(sample_in_chunks(sample, params, jax.random.key(seed), n, N.value, cond))
    )


def _cond(config, texts: list[str]) -> dict[str, np.ndarray]:
    """Return the entries of cond for the texts, padded to one length of sequence."""
    rows = text_encoder.conditioning(texts)
    for name in ("context", "context_mask"):
        room = LENGTH - rows[name].shape[1]
        if room < 0:
            raise UserError(
                f"a text has more than {LENGTH} tokens; shorten {max(texts, key=len)!r}"
            )
        rows[name] = np.pad(rows[name], [(0, 0), (0, room), *[(0, 0)] * (rows[name].ndim - 2)])
    return {name: value for name, value in rows.items() if name in cond_names(config)}


if __name__ == "__main__":
    command.run(main)
