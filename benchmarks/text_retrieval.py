"""Does a sample show what its text says? On a trained run of emoji_text.py:small:

python -m benchmarks.text_retrieval --workdir=runs/emoji_text --out=docs/figures/text.png

64 names are drawn, and a picture is sampled from each. A sample is matched against the true
pictures of these 64 names, by root mean square distance of pixels. top-1 is how often its own is
the nearest, top-5 how often it is among the nearest five; chance is 1/64 and 5/64. From names of
the training set, whose pictures the model may have learned by heart, and of held-out ones, whose
pictures it never saw. The picture of --out has a row for each of --prompts.
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
from ddpm_jax.pretrained import text_encoder
from ddpm_jax.runs.workdir import open_for_reading, read_config
from ddpm_jax.sampling import sample_in_chunks
from experiments import command

WORKDIR = flags.DEFINE_string("workdir", None, "Work directory of a run of emoji_text.")
N = flags.DEFINE_integer("n", 64, "Names of each split.", lower_bound=5)
WEIGHTS = flags.DEFINE_list("weights", ["0", "1", "3"], "Guidance weights w.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds of the samples; the names are the same.")
PROMPTS = flags.DEFINE_list(
    "prompts",
    ["a red heart", "red apple", "blue circle", "flag: France"]  # or nearly so, in training
    + ["tomato", "grinning face", "woman dancing", "flag: Peru"],  # held out
    "Texts of the picture, a row each: samples at the first w, then at the next.",
)
OUT = flags.DEFINE_string("out", None, "Where to draw the picture, a PNG; nowhere if unset.")
flags.mark_flag_as_required("workdir")

NAMES_SEED = 0
LENGTH = 16  # tokens that texts are padded to, so that all calls share one program
SAMPLER = {"sampler": "dpm_solver_pp_2m", "timesteps": "karras", "num_steps": 20}
TOPS = (1, 5)
SHOWN = 8  # samples of a prompt


def main() -> None:
    config = read_config(open_for_reading(WORKDIR.value))
    if not config.data.text:
        raise UserError(f"--workdir={WORKDIR.value} is a run without texts (data.text is False)")
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
        chosen[name] = (pictures / 127.5 - 1.0, _cond(config, [texts[row] for row in rows]))
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
                hits = 100 * np.mean(np.stack(ranks) < k, axis=0)  # of each name, over the seeds
                error = hits.std(ddof=1) / np.sqrt(len(hits))
                cells.append(f"{hits.mean():.1f} ± {error:.1f}")
            print(f"| {name} | {w:g} | " + " | ".join(cells) + " |", flush=True)
        if OUT.value:
            texts = [prompt for prompt in PROMPTS.value for _ in range(SHOWN)]
            images = _draw(sample, params, 0, _cond(config, texts))
            shown.append(
                grids.to_uint8(images).reshape(len(PROMPTS.value), SHOWN, *images.shape[1:])
            )
    if OUT.value:
        rows = np.concatenate(shown, axis=1)  # a row for each prompt, w after w
        picture = grids.make_grid(rows.reshape(-1, *rows.shape[2:]), columns=rows.shape[1], side=32)
        grids.save_png(pathlib.Path(OUT.value), picture)


def _draw(sample, params, seed: int, cond: dict[str, np.ndarray]) -> np.ndarray:
    """Return an image for each row of cond; all calls have one size and compile once."""
    n = len(cond["embedding"])
    return np.concatenate(
        list(sample_in_chunks(sample, params, jax.random.key(seed), n, N.value, cond))
    )


def _cond(config, texts: list[str]) -> dict[str, np.ndarray]:
    """Return what the network is told of the texts, at one length of sequence for all."""
    rows = text_encoder.conditioning(texts)
    for name in ("context", "context_mask"):
        room = LENGTH - rows[name].shape[1]
        if room < 0:
            raise UserError(f"a text has more than {LENGTH} tokens: {max(texts, key=len)!r}")
        rows[name] = np.pad(rows[name], [(0, 0), (0, room), *[(0, 0)] * (rows[name].ndim - 2)])
    return {name: value for name, value in rows.items() if name in cond_names(config)}


if __name__ == "__main__":
    command.run(main)
