"""Do synthetic images help a classifier if some classes are scarce? Train it in several ways.

    python -m experiments.imbalanced --config=experiments/fashion_imbalanced.py

The steps, each kept in the work directory; the same command, started again, goes on after them:

  fit.npz                   the long-tailed training set (data.imbalance) but for a validation part
  autoencoder/              an autoencoder of fit.npz, as by experiments.train
  diffusion/                a class-conditional model of its latents, as by experiments.train
  synthetic/                images that fill up the classes, one file for each weight w of guidance
  classifiers/              the weights of all classifiers; validation chooses w and a filter
  results.json              the arms on the test split, which is read here for the first time
  recall_by_class_rank.png  the recall of each class, from the most frequent to the rarest

The arms are the rows of `ARMS` in ddpm_jax/training/arms.py. docs/imbalanced.md explains them. Each
field of the config is a flag, such as --config.data.imbalance=10 or --config.arms.num_seeds=2.
"""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from rich.table import Table

from ddpm_jax import build, data
from ddpm_jax.build import guidance, latents
from ddpm_jax.build.overrides import override
from ddpm_jax.config import Config, DataConfig, from_dict
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import filtering, recognition
from ddpm_jax.evaluation.distances import Estimate
from ddpm_jax.evaluation.memorisation import Memorisation, compare, nearest_training_image
from ddpm_jax.figures.curves import recall_by_class
from ddpm_jax.models import digest
from ddpm_jax.pixels import to_uint8
from ddpm_jax.runs import open_run
from ddpm_jax.runs.workdir import WorkDir
from ddpm_jax.runtime.files import absolute, load_or_make, replacing, to_json
from ddpm_jax.runtime.progress import Progress
from ddpm_jax.sampling import sample_in_chunks
from ddpm_jax.training import arms
from ddpm_jax.training.arms import ARMS, Labelled
from ddpm_jax.training.loop import train
from ddpm_jax.training.recognition import Recogniser, make_recogniser
from experiments import command, config_flag, outputs, tables
from experiments.clock import Clock
from experiments.progress import ProgressLine, chunk_size

CONFIG = config_flag.define("The experiment's config file: data, autoencoder, diffusion and arms.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Work directory. Default: runs/<name of the config file>."
)

SECTIONS = ("data", "autoencoder", "diffusion", "arms")
JUDGE = "logit_adjustment"  # its first classifier filters: it treats all classes alike
BASELINES = ("nothing", "oversampling")  # `synthetic` differs from the second by its images only
VERSION = 2  # of what is kept: raise it if the code gives other classifiers or images
FILES = ("fit.npz", "minutes.json", "results.json", "recall_by_class_rank.png")


class Experiment(NamedTuple):
    """The checked config: the data, the two runs and the settings of the arms."""

    data: DataConfig
    autoencoder: Config
    diffusion: Config
    arms: arms.Settings


class Parts(NamedTuple):
    """The images.

    Attributes:
      fit: the part of the long-tailed set to train on.
      validation: the part of the long-tailed set that chooses w and the filter.
      test: the test split; `main` reads it after everything is chosen and trained.
      names: the names of the classes, from the most frequent to the rarest.
    """

    fit: Labelled
    validation: Labelled
    test: data.Source
    names: tuple[str, ...]


def main() -> int:
    root = absolute(WORKDIR.value or config_flag.default_workdir())
    experiment = read(CONFIG.value, root)
    outputs.check_writable(root, None, FILES)
    clock, settings = Clock(root / "minutes.json"), experiment.arms
    parts = split(experiment, root / "fit.npz")
    check_networks(experiment, parts)
    for name in ("autoencoder", "diffusion"):
        config: Config = getattr(experiment, name)
        finished = WorkDir(root / name).newest_step() >= config.train.num_steps
        with contextlib.nullcontext() if finished else clock(name):
            result = train(config, root / name)
        if result.signal is not None:
            return 128 + result.signal
    with ProgressLine() as progress:
        drawn = {
            w: synthetic(root, parts, w, clock, progress) for w in dict.fromkeys(settings.guidance)
        }
        classifiers = Classifiers(root / "classifiers", experiment, parts, clock, progress)
        by_guidance = of_guidance(classifiers, drawn)
        guided = choose(by_guidance)
        by_filter = of_filter(classifiers, guided.images)
        accepted = choose(by_filter)
        extra = {name: guided.images if arm.synthetic else None for name, arm in ARMS.items()}
        extra |= {name: accepted.images for name, arm in ARMS.items() if arm.filtered}
        trained = classifiers.of_arms(extra)
    # Everything is chosen and trained. From here on the test split is read.
    test = read_test(parts)
    found = {
        name: np.stack([classifiers.recalls(weights, test) for weights in seeds])
        for name, seeds in trained.items()
    }
    choices = {
        name: [option.row(option is chosen, classifiers, test) for option in options]
        for name, options, chosen in (
            ("guidance", by_guidance, guided),
            ("filter", by_filter, accepted),
        )
    }
    near = copies(parts, guided.images, experiment.data.flip)
    report(root, parts, found, choices, near, clock)
    return 0


def read(mapping: Mapping[str, Any], root: pathlib.Path) -> Experiment:
    """Return the checked config.

    Args:
      mapping: the ConfigDict of --config.
      root: the work directory; the two runs read fit.npz there.

    Raises:
      UserError: another section, a mistake in a section, or a config that this experiment cannot
        use.
    """
    config_flag.check_sections(mapping, SECTIONS, "imbalanced", "fashion_imbalanced")
    whole = from_dict({"data": mapping["data"]}).data
    if whole.imbalance == 1:
        raise UserError(
            "data.imbalance is 1, so no class is scarce; set it above 1, for example to 100"
        )
    # The two runs see no other images than those in this file.
    of_fit = {
        "name": "array",
        "path": str(root / "fit.npz"),
        "holdout": 0.0,
        "flip": whole.flip,
        "data_dir": whole.data_dir,
    }
    codec = {"codec": str(root / "autoencoder")}
    autoencoder = from_dict({**mapping["autoencoder"], "data": of_fit})
    diffusion = from_dict({**mapping["diffusion"], "data": of_fit | codec})
    for name, config, wanted in (
        ("autoencoder", autoencoder, "autoencoder"),
        ("diffusion", diffusion, "unet"),
    ):
        if config.model.name != wanted:
            raise UserError(
                f"{name}.model.name is {config.model.name!r}; set it to {wanted!r} here"
            )
    if not diffusion.model.class_conditional:
        raise UserError(
            "diffusion.model.class_conditional is False, but images of each class must be drawn; "
            "set it to True"
        )
    if diffusion.sample.guidance:
        raise UserError(
            f"diffusion.sample.guidance is {diffusion.sample.guidance:g}, but arms.guidance has "
            "the weights w here; set it to 0"
        )
    latents.check(diffusion)
    build.sampler(diffusion.sample, build.process(diffusion.process))  # refuses what cannot be
    return Experiment(whole, autoencoder, diffusion, arms.from_dict(mapping["arms"]))


def split(experiment: Experiment, path: pathlib.Path) -> Parts:
    """Return the parts of the long-tailed set, and write the part to train on to `path`.

    Raises:
      UserError: the data cannot be used, or `path` has other images.
    """
    # Without a copy in memory: nothing of the test split is read here.
    dataset = data.open_dataset(dataclasses.replace(experiment.data, ram_limit_gb=0.0))
    if dataset.test is None:
        raise UserError(
            f"{experiment.data.name} has no held-out images to compare the arms on; set "
            "data.test_split or data.holdout"
        )
    whole = Labelled(*dataset.train.read(np.arange(len(dataset.train))))
    names = dataset.class_names
    fit, validation = arms.divide(whole, experiment.arms.validation_every, names)
    content = fit._asdict()
    if path.exists():
        with np.load(path) as file:
            if digest(dict(file)) != digest(content):
                raise UserError(
                    f"{path} has other images than this config chooses (data.imbalance, "
                    "data.max_per_class, arms.validation_every); choose another --workdir"
                )
    else:
        with replacing(path) as part:
            np.savez(part, **content)
    for name, part in (("train", fit), ("validation", validation)):
        counts = np.bincount(part.labels)
        print(f"{name}: {len(part.labels):,} images; of each class {', '.join(map(str, counts))}")
    return Parts(fit, validation, dataset.test, names)


def check_networks(experiment: Experiment, parts: Parts) -> None:
    """Refuse networks that do not fit the images or the latents, before the first training.

    Raises:
      UserError: as the constructors of the networks.
    """
    shape, num_classes = parts.fit.images.shape[1:], len(parts.names)
    encoder = build.autoencoder(experiment.autoencoder.model, shape)
    diffusion = experiment.diffusion
    model = build.model(diffusion.model, encoder.latent_shape, num_classes)
    build.make_chain(diffusion).loss(model.apply)
    for w in experiment.arms.guidance:
        guided = override(diffusion, {"guidance": w})
        guidance.from_config(guided, build.process(diffusion.process))
    for name in ("autoencoder", "diffusion"):
        size = getattr(experiment, name).train.batch_size
        if size > len(parts.fit.labels):
            raise UserError(
                f"{name}.train.batch_size is {size}, but there are {len(parts.fit.labels)} images "
                "to train on; lower it"
            )
    if not len(arms.missing(parts.fit.labels, num_classes)):
        raise UserError(
            f"data.imbalance is {experiment.data.imbalance:g}, which leaves classes of equal size; "
            "raise it"
        )


def synthetic(
    root: pathlib.Path, parts: Parts, w: float, clock: Clock, progress: Progress
) -> Labelled:
    """Return the images that fill up the classes, drawn with the weight w of the guidance."""
    run = open_run(root / "diffusion", sample={"guidance": w})
    labels = arms.missing(parts.fit.labels, len(parts.names))
    sampling = dataclasses.asdict(run.config.sample)
    size = chunk_size(len(labels), sampling.pop("chunk_size"))
    facts = {
        "weights": digest(run.params),
        "codec": run.facts.codec,
        "labels": digest(labels),
        "sample": sampling,
        "version": VERSION,
    }

    def make() -> dict[str, np.ndarray]:
        what, chunks, cond = f"drawing images with w = {w:g}", [], {"label": labels}
        progress(what, 0, len(labels))
        with clock("synthetic images"):
            for chunk in sample_in_chunks(
                run.sample_fn(), run.params, jax.random.key(0), len(labels), size, cond
            ):
                chunks.append(to_uint8(chunk))
                progress(what, sum(map(len, chunks)), len(labels))
        return {"images": np.concatenate(chunks), "labels": labels}

    return Labelled(**load_or_make(root / "synthetic", f"w{w:g}", facts, make))


class Classifiers:
    """Trains classifiers, keeps their weights in a directory, and measures them."""

    def __init__(
        self,
        directory: pathlib.Path,
        experiment: Experiment,
        parts: Parts,
        clock: Clock,
        progress: Progress,
    ):
        self.settings, self.parts, self.progress = experiment.arms, parts, progress
        self._directory, self._flip, self._clock = directory, experiment.data.flip, clock
        c = experiment.arms
        self._sizes = {
            "channels": c.channels,
            "num_steps": c.num_steps,
            "batch_size": c.batch_size,
            "learning_rate": c.learning_rate,
        }

    @functools.cached_property
    def recogniser(self) -> Recogniser:
        shape = self.parts.fit.images.shape[1:]
        return make_recogniser(len(self.parts.names), shape, **self._sizes)

    def trained(self, name: str, extra: Labelled | None, seed: int, stage: str) -> list[np.ndarray]:
        """Return the weights of one training of an arm.

        Args:
          name: the name of the arm.
          extra: its synthetic images, or None.
          seed: the seed.
          stage: the stage of the experiment that takes the time.
        """
        num_classes = len(self.parts.names)
        examples = arms.examples(
            ARMS[name], self.parts.fit, extra, num_classes, self._flip, self.settings
        )
        facts = {"examples": digest(examples), "seed": seed, "version": VERSION, **self._sizes}

        def make() -> dict[str, np.ndarray]:
            with self._clock(stage):
                weights = self.recogniser.train(examples, seed)
            return {f"leaf_{i:02d}": leaf for i, leaf in enumerate(weights)}

        found = load_or_make(self._directory, f"{name}_seed{seed}", facts, make)
        return [found[key] for key in sorted(found)]

    def of_arms(self, extra: Mapping[str, Labelled | None]) -> dict[str, list[list[np.ndarray]]]:
        """Return the weights of each arm and seed, given the synthetic images of each arm."""
        what, total = "training the arms", len(extra) * self.settings.num_seeds
        found: dict[str, list[list[np.ndarray]]] = {name: [] for name in extra}
        for seed in range(self.settings.num_seeds):
            for name, images in extra.items():
                self.progress(what, sum(map(len, found.values())), total)
                found[name].append(self.trained(name, images, seed, what))
        self.progress(what, total, total)
        return found

    def recalls(self, weights: list[np.ndarray], images: Labelled) -> np.ndarray:
        """Return the recall of each class: [K]."""
        logits, _ = self.recogniser.predict(weights, images.images)
        return recognition.recalls(images.labels, logits.argmax(axis=-1), len(self.parts.names))

    def option(self, name: str, extra: Labelled, stage: str, facts: dict[str, Any]) -> "Option":
        """Return an option, with its classifiers of the seeds 0 .. choice_seeds - 1.

        Args:
          name: the name of the arm that is trained.
          extra: the synthetic images of the option.
          stage: what the progress line says.
          facts: what the results say of the option.
        """
        weights, total = [], self.settings.choice_seeds
        for seed in range(total):
            self.progress(stage, seed, total)
            weights.append(self.trained(name, extra, seed, "choosing w and the filter"))
        self.progress(stage, total, total)
        validation = self.parts.validation
        found = np.mean([self.recalls(each, validation) for each in weights], axis=0)
        error = recognition.sampling_error(found, np.bincount(validation.labels))
        return Option(extra, weights, Estimate(float(found.mean()), error), facts)


class Option(NamedTuple):
    """One of the weights w, or one of the filters.

    Attributes:
      images: the synthetic images that it gives.
      weights: the classifiers that were trained with them.
      score: the balanced accuracy on the validation part, with the error of its few images.
      facts: what the results say of it.
    """

    images: Labelled
    weights: list[list[np.ndarray]]
    score: Estimate
    facts: dict[str, Any]

    def row(self, chosen: bool, classifiers: Classifiers, test: Labelled) -> dict[str, Any]:
        """Return what the results say, with the accuracy on the test split, which chose nothing."""
        on_test = np.mean([classifiers.recalls(each, test).mean() for each in self.weights])
        score = {"accuracy": self.score.value, "error": self.score.error, "test": float(on_test)}
        return self.facts | score | {"chosen": chosen}


def choose(options: list[Option]) -> Option:
    """Return the option that `recognition.choose` takes, by the scores on the validation part."""
    return options[recognition.choose([option.score for option in options])]


def of_guidance(classifiers: Classifiers, drawn: Mapping[float, Labelled]) -> list[Option]:
    """Return the options for the weight w of the guidance."""
    return [
        classifiers.option("synthetic", images, f"training with w = {w:g}", {"w": w})
        for w, images in drawn.items()
    ]


def of_filter(classifiers: Classifiers, drawn: Labelled) -> list[Option]:
    """Return the options for the filter. Its classifier is trained on the part to train on only."""
    fit, validation = classifiers.parts.fit, classifiers.parts.validation
    weights = classifiers.trained(JUDGE, None, 0, "training the arms")
    predict = functools.partial(classifiers.recogniser.predict, weights)
    _, of_fit = predict(fit.images)
    held_out, ours = (
        filtering.judge(*predict(part.images), part.labels, of_fit, fit.labels)
        for part in (validation, drawn)
    )
    options = []
    for reject in dict.fromkeys(classifiers.settings.reject):
        limits = filtering.thresholds(held_out, reject)
        mask = filtering.passes(ours, limits)
        passed = Labelled(drawn.images[mask], drawn.labels[mask])
        kept = np.bincount(passed.labels, minlength=len(classifiers.parts.names))
        facts = {"reject": reject, **limits._asdict(), "passed": kept.tolist()}
        what = f"training with a filter that rejects {reject:g}"
        options.append(classifiers.option("synthetic_filtered", passed, what, facts))
    return options


def copies(parts: Parts, drawn: Labelled, flip: bool) -> dict[str, Memorisation]:
    """Return how near the synthetic images of each third of the classes are to real ones.

    The nearest image may have any class. The reference is the validation part of that third.
    """
    fit, validation = parts.fit.images, parts.validation
    found = {}
    for third, classes in recognition.thirds(len(parts.names)).items():
        ours, held_out = (
            images[np.isin(labels, classes)] for images, labels in (drawn, validation)
        )
        if len(ours) and len(held_out):
            distances = (
                nearest_training_image(images, lambda: [fit], flip=flip)[0]
                for images in (ours, held_out)
            )
            found[third] = compare(*distances)
    return found


def read_test(parts: Parts) -> Labelled:
    """Return the images of the test split.

    Raises:
      UserError: the split lacks a class.
    """
    test = Labelled(*parts.test.read(np.arange(len(parts.test))))
    counts = np.bincount(test.labels, minlength=len(parts.names))
    if not counts.all():
        raise UserError(
            f"the test split has no image of class {parts.names[int(counts.argmin())]!r}; choose "
            "another data.test_split or data.holdout"
        )
    return test


def report(
    root: pathlib.Path,
    parts: Parts,
    found: Mapping[str, np.ndarray],
    choices: Mapping[str, list[dict[str, Any]]],
    near: Mapping[str, Memorisation],
    clock: Clock,
) -> None:
    """Print the results, and write them to results.json and recall_by_class_rank.png.

    Args:
      root: the work directory.
      parts: the long-tailed set.
      found: arm -> [seeds, K] float, the recall of each class on the test split.
      choices: what the validation part chose, and from what.
      near: how near the synthetic images of each third of the classes are to real ones.
      clock: the times of the stages.
    """
    ours = [name for name, arm in ARMS.items() if arm.synthetic]
    others = [name for name in ARMS if name not in ours]
    baselines = dict.fromkeys([*BASELINES, recognition.best(found, others)])
    summaries = {name: recognition.summarise(recalls) for name, recalls in found.items()}
    differences = {
        name: {
            other: recognition.paired(recalls.mean(axis=1), found[other].mean(axis=1))
            for other in baselines
        }
        for name, recalls in found.items()
    }
    verdict = recognition.verdict(found, ours, others)
    minutes = {stage: seconds / 60 for stage, seconds in clock.seconds.items()}
    of_arms = minutes.get("training the arms", 0.0)
    costs = ", ".join(f"{stage} {value:.1f}" for stage, value in minutes.items())
    cost = (
        f"minutes: {costs}. So the synthetic images and their choice took "
        f"{sum(minutes.values()) - of_arms:.1f} minutes, and the other trainings {of_arms:.1f}"
    )
    console = tables.console()
    for table in as_tables(summaries, differences):
        console.print(table)
    seeds = len(found["nothing"])
    console.print(f"in %, on the test split: mean ± standard error over {seeds} seeds, paired")
    for name, rows in choices.items():
        console.print(f"{name}, on the validation part: {'; '.join(map(_row, rows))}")
    for third, found_near in near.items():
        console.print(
            f"{third} classes: the median distance of a synthetic image to the nearest training "
            f"image is {found_near.nearest_ratio:.2f} of that of a validation image"
        )
    console.print(verdict)
    console.print(cost)
    content = {
        "classes": parts.names,
        "counts": {
            "fit": np.bincount(parts.fit.labels).tolist(),
            "validation": np.bincount(parts.validation.labels).tolist(),
        },
        "choices": choices,
        "nearest": {third: each._asdict() for third, each in near.items()},
        "arms": {
            name: {
                "balanced_accuracy": summary.accuracy._asdict(),
                "thirds": {third: e._asdict() for third, e in summary.thirds.items()},
                "differences": {other: d._asdict() for other, d in differences[name].items()},
                "recalls": found[name].tolist(),
            }
            for name, summary in summaries.items()
        },
        "verdict": verdict,
        "minutes": minutes,
    }
    with replacing(root / "results.json") as part:
        part.write_text(to_json(content, indent=2, ensure_ascii=False) + "\n")
    lines = {name: summary.recalls for name, summary in summaries.items()}
    counts = np.bincount(parts.fit.labels).tolist()
    figure = recall_by_class(lines, parts.names, counts)
    outputs.save_figure(root / "recall_by_class_rank.png", figure)
    print(f"results: {root / 'results.json'}\nfigure: {root / 'recall_by_class_rank.png'}")


def as_tables(
    summaries: Mapping[str, recognition.ArmResult],
    differences: Mapping[str, Mapping[str, Estimate]],
) -> tuple[Table, Table]:
    """Return the table of balanced accuracies and their differences, and that of recalls."""
    accuracies, recalls = Table("arm", "balanced accuracy"), Table("recall of classes")
    for other in differences["nothing"]:
        accuracies.add_column(f"- {other}", justify="right", no_wrap=True)
    for third in summaries["nothing"].thirds:
        recalls.add_column(third, justify="right", no_wrap=True)
    for name, summary in summaries.items():
        others = differences[name].items()
        cells = ["" if other == name else _percent(d, "+") for other, d in others]
        accuracies.add_row(name, _percent(summary.accuracy), *cells)
        recalls.add_row(name, *map(_percent, summary.thirds.values()))
    return accuracies, recalls


def _percent(estimate: Estimate, sign: str = "") -> str:
    error = "" if np.isnan(estimate.error) else f" ± {100 * estimate.error:.1f}"
    return f"{100 * estimate.value:{sign}.1f}{error}"


def _row(row: Mapping[str, Any]) -> str:
    """Return an option for a line: "w = 0.5: 81.2 ± 2.3, test 80.1 (chosen)"."""
    name = "w" if "w" in row else "reject"
    score = _percent(Estimate(row["accuracy"], row["error"]))
    chosen = " (chosen)" if row["chosen"] else ""
    return f"{name} = {row[name]:g}: {score}, test {100 * row['test']:.1f}{chosen}"


if __name__ == "__main__":
    command.run(main)
