"""Grow scenes in three dimensions from a diffusion model of pictures (DreamFusion).

    python -m experiments.dreamfusion --config=experiments/dreamfusion_solids.py
    python -m experiments.dreamfusion --config=experiments/dreamfusion_solids.py:text \
        --text="a red and blue striped chair"

The steps, each kept in the work directory; the same command, started again, goes on after them:

  prior/            a diffusion model of the set `solids`, as by experiments.train
  judge/            a classifier of held-out pictures of `solids`, which judges the fields
  fields/           the states of all fields, every field.checkpoint_every steps
  pictures/         of each field: a turntable (.gif), a strip of views (.png), its grids (.npz);
                    all_views.png and all_no_views.png have the strips of seed 0, a row for a class
  results.json      what the judge sees in the fields of each arm

With --classes or --text, the names of the last three files say what was grown.

The arms are the rows of `ARMS` in ddpm_jax/training/scene.py. docs/dreamfusion.md explains them.
Each field of the config is a flag, such as --config.field.num_seeds=3.
"""

import contextlib
import dataclasses
import functools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from rich.table import Table

from ddpm_jax import build, data
from ddpm_jax.build import guidance, sampling
from ddpm_jax.config import Config, DataConfig, from_dict
from ddpm_jax.config_checks import check_section
from ddpm_jax.data import solids
from ddpm_jax.errors import UserError, unknown
from ddpm_jax.evaluation import recognition
from ddpm_jax.evaluation.distances import Estimate
from ddpm_jax.figures import grids
from ddpm_jax.models import digest
from ddpm_jax.pixels import to_uint8
from ddpm_jax.runs import open_run
from ddpm_jax.runs.workdir import WorkDir
from ddpm_jax.runtime.files import absolute, load_or_make, replacing, to_json
from ddpm_jax.runtime.progress import Progress
from ddpm_jax.scenes import sides
from ddpm_jax.training import scene
from ddpm_jax.training.loop import train
from ddpm_jax.training.recognition import Examples, make_recogniser
from ddpm_jax.training.scene import ARMS, JudgeSettings, Settings, State
from experiments import command, config_flag, outputs, tables
from experiments.clock import Clock
from experiments.progress import ProgressLine

CONFIG = config_flag.define("The experiment's config file: data, prior, field and judge.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Work directory. Default: runs/<name of the config file>."
)
CLASSES = flags.DEFINE_list(
    "classes", [], "Classes to grow, such as chair,mug. Default: all classes of the set."
)
TEXT = flags.DEFINE_string(
    "text",
    None,
    "For a prior of texts: what to grow, such as 'a red chair'. If the text does not name its "
    "class, --classes does. Default: 'a chair' and so on, for each class.",
)

SECTIONS = ("data", "prior", "field", "judge")
NUM_SIDES = len(sides.SIDES)
TURNTABLE, STRIP = 36, 12  # pictures of a turntable, and of a strip
ELEVATION = 0.35  # of their cameras, in radians
FINE = 2  # a turntable has this many times the prior's pixels along a side
ELEVATIONS = (0.2, 0.6, 1.05)  # of the views that the judge sees; the last is from the top
AHEAD = 8  # steps that the host runs ahead of the device


class Subject(NamedTuple):
    """What a field should show.

    Attributes:
      name: part of the names of its files.
      text: the name of its class, or a text if the prior receives texts.
      label: its class.
    """

    name: str
    text: str
    label: int


class Experiment(NamedTuple):
    """The checked config, what to grow, and the end of the names of the files about all of it."""

    prior: Config
    field: Settings
    judge: JudgeSettings
    subjects: tuple[Subject, ...]
    suffix: str

    @property
    def data(self) -> DataConfig:
        return self.prior.data


def main() -> int:
    root = absolute(WORKDIR.value or config_flag.default_workdir())
    experiment = read(CONFIG.value, tuple(CLASSES.value), TEXT.value)
    results = root / f"results{experiment.suffix}.json"
    outputs.check_writable(root, None, ("minutes.json", results.name))
    clock = Clock(root / "minutes.json")
    dataset = data.open_dataset(experiment.data)
    finished = WorkDir(root / "prior").newest_step() >= experiment.prior.train.num_steps
    with contextlib.nullcontext() if finished else clock("prior"):
        result = train(experiment.prior, root / "prior")
    if result.signal is not None:
        return 128 + result.signal
    with ProgressLine() as progress:
        judge = Judge(root / "judge", experiment.judge, dataset, clock, progress)
        fields = Fields(root, experiment, clock, progress)
        seen = {}
        for seed in range(experiment.field.num_seeds):
            for arm in ARMS:
                for subject in experiment.subjects:
                    shown = fields.grown(arm, subject, seed)
                    seen[arm, subject, seed] = judge.look(subject.label, *shown)
    fields.write_overviews(experiment.subjects, experiment.suffix)
    report(results, experiment, seen, judge.on_pictures(), clock)
    print(f"pictures: {root / 'pictures'}\nresults: {results}")
    return 0


def read(mapping: Mapping[str, Any], classes: tuple[str, ...], text: str | None) -> Experiment:
    """Return the checked config.

    Args:
      mapping: the ConfigDict of --config.
      classes: the names of --classes; () is all.
      text: the text of --text.

    Raises:
      UserError: another section, a mistake in a section, a config that this experiment cannot use,
        an unknown class, or a text of an unknown class.
    """
    config_flag.check_sections(mapping, SECTIONS, "dreamfusion", "dreamfusion_solids")
    for name in classes:
        if name not in solids.CLASSES:
            raise unknown("class in --classes", name, solids.CLASSES)
    prior = from_dict({**mapping["prior"], "data": mapping["data"]})
    for key, found, wanted in (
        ("data.name", prior.data.name, "solids"),
        ("data.view_labels", prior.data.view_labels, True),
        ("data.flip", prior.data.flip, False),
        ("prior.model.name", prior.model.name, "unet"),
        ("prior.model.class_conditional", prior.model.class_conditional, not prior.data.text),
        ("prior.model.super_resolution", prior.model.super_resolution, 0),
    ):
        if found != wanted:
            raise UserError(f"{key} is {found!r}; set it to {wanted!r} here")
    field = scene.from_dict(mapping["field"])
    judge = check_section("judge", JudgeSettings, mapping["judge"], scene.JUDGE_RANGES)
    process = build.process(prior.process)
    guided = dataclasses.replace(prior.sample, **scene.sample_of(field, process.num_timesteps))
    guidance.from_config(dataclasses.replace(prior, sample=guided), process)  # raises early
    subjects = subjects_of(prior, classes, text)
    some = classes or text is not None
    suffix = "_" + outputs.join(*(subject.name for subject in subjects)) if some else ""
    return Experiment(prior, field, judge, subjects, suffix)


def subjects_of(prior: Config, classes: tuple[str, ...], text: str | None) -> tuple[Subject, ...]:
    """Return what to grow.

    Args:
      prior: the config of the prior.
      classes: the names of --classes; () is all.
      text: the text of --text.

    Raises:
      UserError: a text is given, but the prior takes no text, or the class is not clear.
    """
    if text is None:
        pattern = "a {}" if prior.data.text else "{}"
        return tuple(
            Subject(name, pattern.format(name), solids.CLASSES.index(name))
            for name in classes or solids.CLASSES
        )
    if not prior.data.text:
        raise UserError(
            f"--text={text!r} is given, but the prior takes no text (data.text is False); use "
            "--config=experiments/dreamfusion_solids.py:text"
        )
    words = re.findall(r"\w+", text.lower())
    named = classes or tuple(name for name in solids.CLASSES if name in words)
    if len(named) != 1:
        raise UserError(
            f"--text={text!r} is for one class, found {', '.join(named) or 'none'}; name the class "
            f"that the judge should expect, such as --classes={named[0] if named else 'chair'}"
        )
    return (Subject(outputs.word(text), text, solids.CLASSES.index(named[0])),)


class Looks(NamedTuple):
    """What the judge sees in several pictures of one object: an index per picture, [n] int.

    Attributes:
      classes: the class.
      sides: the side, given the true class.
      true_sides: the side that the camera sees.
    """

    classes: np.ndarray
    sides: np.ndarray
    true_sides: np.ndarray


class Judge:
    """A classifier of the class and the side, trained on the held-out objects of the set.

    It sees grey pictures: the colours of the set say nothing of the class.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        settings: JudgeSettings,
        dataset: data.Dataset,
        clock: Clock,
        progress: Progress,
    ):
        self._dataset = dataset
        grey_shape = (*dataset.image_shape[:2], 1)
        self._recogniser = make_recogniser(
            len(solids.CLASSES) * NUM_SIDES, grey_shape, **dataclasses.asdict(settings)
        )
        assert dataset.test is not None  # `solids` always has held-out objects
        images, label, side = _with_side(dataset.test)
        n = len(label)
        examples = Examples(
            _grey(images),
            label * NUM_SIDES + side,
            np.full(n, 1 / n),
            np.ones(n),
            np.zeros(len(solids.CLASSES) * NUM_SIDES),
            max_shift=2,
        )
        facts = {"examples": digest(examples), **dataclasses.asdict(settings)}

        def make() -> dict[str, np.ndarray]:
            progress("training the judge", 0, 1)
            with clock("judge"):
                weights = self._recogniser.train(examples, 0)
            progress("training the judge", 1, 1)
            return {f"leaf_{i:02d}": leaf for i, leaf in enumerate(weights)}

        found = load_or_make(directory, "judge", facts, make)
        self._weights = [found[key] for key in sorted(found)]

    def look(self, label: int, pictures: np.ndarray, true_sides: np.ndarray) -> Looks:
        """Return what the judge sees in pictures of one class: uint8 [n, H, W, 3]."""
        return self._look(np.full(len(pictures), label), pictures, true_sides)

    def on_pictures(self) -> list[Looks]:
        """Return what the judge sees in the training pictures of the prior, for each class.

        The judge was not trained on them, so this is the most that a field can reach.
        """
        images, label, side = _with_side(self._dataset.train)
        looks = self._look(label, images, side)
        return [Looks(*(part[label == i] for part in looks)) for i in range(len(solids.CLASSES))]

    def _look(self, label: np.ndarray, pictures: np.ndarray, true_sides: np.ndarray) -> Looks:
        logits, _ = self._recogniser.predict(self._weights, _grey(pictures))
        table = logits.reshape(len(pictures), len(solids.CLASSES), NUM_SIDES)
        of_class = np.logaddexp.reduce(table, axis=2).argmax(axis=1)
        return Looks(of_class, table[np.arange(len(label)), label].argmax(axis=1), true_sides)


def _grey(pictures: np.ndarray) -> np.ndarray:
    """Return the mean of the colours: uint8 [n, H, W, 3] -> uint8 [n, H, W, 1]."""
    return pictures.mean(axis=-1, keepdims=True).round().astype(np.uint8)


def _with_side(source: data.Source) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pictures whose view is not hidden, with their class and side."""
    images, labels = source.read(np.arange(len(source)))
    label, row = np.divmod(labels, sides.NUM_VIEWS + 1)  # the inverse of `sides.label_of`
    seen = row > 0
    return images[seen], label[seen], sides.SIDE_OF_VIEW[row[seen] - 1]


class Fields:
    """Grows fields, keeps their states in a directory, and takes pictures of them."""

    def __init__(
        self, root: pathlib.Path, experiment: Experiment, clock: Clock, progress: Progress
    ):
        self._root, self._settings = root, experiment.field
        self._clock, self._progress = clock, progress
        sample = scene.sample_of(experiment.field, experiment.prior.process.num_timesteps)
        run = open_run(root / "prior", sample=sample)
        self._side, self._prior, self._config = run.facts.image_shape[0], run.params, run.config
        denoiser = sampling.denoiser(run.config, run.process, run.model)
        encode = (lambda x: x) if run.codec is None else run.codec.encode
        self._grower = scene.make_grower(
            run.process, denoiser, encode, self._side, experiment.field
        )
        unused = ("num_seeds", "checkpoint_every")  # they do not change a field
        settings = dataclasses.asdict(experiment.field)
        self._facts = {"prior": digest(run.params), "codec": run.facts.codec, "sample": sample}
        self._facts |= {k: v for k, v in settings.items() if k not in unused}
        self._view = jax.jit(scene.view, static_argnums=(4, 5))
        self._strips: dict[str, np.ndarray] = {}  # name of a field -> [STRIP, H, W, 3] uint8

    def grown(self, arm: str, subject: Subject, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Grow a field, write its pictures, and return views of it for the judge.

        Returns:
          Pictures uint8 [n, H, W, 3], and the side that each shows [n].
        """
        if not ARMS[arm].grown:
            return self._not_grown
        state = self._state(arm, subject, seed, self._settings.num_steps)
        return self._shown(f"{arm}_{subject.name}_seed{seed}", state)

    @functools.cached_property
    def _not_grown(self) -> tuple[np.ndarray, np.ndarray]:
        """Views of the field before the first step: the same for every subject and seed."""
        return self._shown("not_grown", self._grower.init())

    def _shown(self, name: str, state: State) -> tuple[np.ndarray, np.ndarray]:
        """Write the pictures of a field, and return views of it and their sides."""
        self._write(name, state.params)
        around = np.linspace(-np.pi, np.pi, STRIP, endpoint=False)
        azimuth, elevation = (a.ravel() for a in np.meshgrid(around, ELEVATIONS))
        shown = self._pictures(state.params, azimuth, elevation, self._side)
        return shown, sides.SIDE_OF_VIEW[np.asarray(sides.view_of(azimuth, elevation))]

    def _state(self, arm: str, subject: Subject, seed: int, steps: int) -> State:
        """Return the state of a field after some steps; only steps that are not kept are taken."""
        start = self._grower.init()
        every = self._settings.checkpoint_every
        state = start
        for before in range(0, steps, every):
            state = self._kept(arm, subject, seed, state, before, min(before + every, steps))
        return state

    def _kept(
        self, arm: str, subject: Subject, seed: int, start: State, before: int, steps: int
    ) -> State:
        """Return the state after `steps` steps, from `start`, the state after `before` steps."""
        what = f"growing {subject.text} ({arm}, seed {seed})"

        def make() -> dict[str, np.ndarray]:
            with_views = ARMS[arm].views
            rows = scene.rows_of(self._config, subject.text, subject.label, with_views=with_views)
            state = jax.tree.map(jnp.copy, start)  # a step donates its state
            with self._clock("fields"):
                for number in range(before, steps):
                    if number % AHEAD == 0:
                        jax.block_until_ready(state)
                        self._progress(what, number, self._settings.num_steps)
                    state = self._grower.step(
                        state, self._prior, rows, jax.random.key(seed), number
                    )
                leaves = jax.device_get(jax.tree.leaves(state))
            if skipped := int(state.moments.total_notfinite):
                raise UserError(
                    f"{skipped} of the first {steps} steps of {subject.text} ({arm}, seed {seed}) "
                    "had a gradient that is not finite; lower config.field.learning_rate"
                )
            self._progress(what, steps, self._settings.num_steps)
            return {f"leaf_{i:02d}": leaf for i, leaf in enumerate(leaves)}

        facts = self._facts | {"arm": arm, "class": subject.text, "seed": seed, "step": steps}
        name = f"{arm}_{subject.name}_seed{seed}_{steps}"
        kept = load_or_make(self._root / "fields", name, facts, make)
        leaves = [jnp.asarray(kept[key]) for key in sorted(kept)]
        return jax.tree.unflatten(jax.tree.structure(start), leaves)

    def _write(self, name: str, params: Any) -> None:
        """Write the turntable, the strip and the grids of a field."""
        path = self._root / "pictures" / name
        around = np.linspace(0, 2 * np.pi, TURNTABLE, endpoint=False)
        low = np.full(TURNTABLE, ELEVATION)
        frames = self._pictures(params, around, low, FINE * self._side)
        kept: dict[str, Any] = {f"grid_{i}": np.asarray(grid) for i, grid in enumerate(params)}
        try:
            grids.save_gif(path.with_suffix(".gif"), frames, 0.08, 2 * FINE * self._side)
            with replacing(path.with_suffix(".npz")) as part:
                np.savez(part, **kept)
        except OSError as error:
            raise outputs.not_writable(path, None, error) from error
        strip = frames[:: TURNTABLE // STRIP]
        self._strips[name] = strip
        outputs.save_picture(path.with_suffix(".png"), grids.make_grid(strip, STRIP))

    def write_overviews(self, subjects: tuple[Subject, ...], suffix: str) -> None:
        """Write one picture for each arm: the strips of seed 0, a row for a subject."""
        texts = [subject.text for subject in subjects]
        for arm in ARMS:
            if ARMS[arm].grown:
                strips = [self._strips[f"{arm}_{subject.name}_seed0"] for subject in subjects]
                grid = grids.make_grid(np.concatenate(strips), STRIP, row_labels=texts)
                outputs.save_picture(self._root / "pictures" / f"all_{arm}{suffix}.png", grid)

    def _pictures(
        self, params: Any, azimuth: np.ndarray, elevation: np.ndarray, side: int
    ) -> np.ndarray:
        """Return pictures of a field, with the light above and beside the camera: uint8."""
        light = np.stack([np.cos(azimuth + 0.7), np.sin(azimuth + 0.7), np.ones_like(azimuth)], -1)
        light = jnp.asarray(light / np.sqrt(2), jnp.float32)
        angles = (jnp.asarray(angle, jnp.float32) for angle in (azimuth, elevation))
        picture = self._view(params, *angles, light, side, 2 * self._settings.num_samples)
        return to_uint8(2.0 * picture.colour - 1.0)


def scores(looks: Looks, label: int) -> dict[str, float]:
    """Return what the judge says of one object.

    accuracy: fraction of the views with the right class; agreement: fraction with the class that
    most views have; side: fraction with the right side.
    """
    counts = np.bincount(looks.classes, minlength=len(solids.CLASSES))
    return {
        "accuracy": float(counts[label] / counts.sum()),
        "agreement": float(counts.max() / counts.sum()),
        "side": float((looks.sides == looks.true_sides).mean()),
    }


def report(
    path: pathlib.Path,
    experiment: Experiment,
    seen: Mapping[tuple[str, Subject, int], Looks],
    pictures: Sequence[Looks],
    clock: Clock,
) -> None:
    """Print the results, and write them to a file.

    Args:
      path: the file.
      experiment: the checked config.
      seen: (arm, subject, seed) -> what the judge sees in the field.
      pictures: what the judge sees in pictures of the set, for each class.
      clock: the times of the stages.
    """
    found = {
        arm: {
            subject.text: [
                scores(seen[arm, subject, seed], subject.label)
                for seed in range(experiment.field.num_seeds)
            ]
            for subject in experiment.subjects
        }
        for arm in ARMS
    }
    limit = {
        subject.text: [scores(pictures[subject.label], subject.label)]
        for subject in experiment.subjects
    }
    measures = ("accuracy", "agreement", "side")
    table = Table("fields", *measures, title="in %, mean ± standard error over fields")
    summaries = {}
    for arm, by_subject in {**found, "pictures of the set": limit}.items():
        rows = [row for each in by_subject.values() for row in each]
        summaries[arm] = {
            m: recognition.estimate(np.array([row[m] for row in rows])) for m in measures
        }
        table.add_row(arm, *(_percent(summaries[arm][m]) for m in measures))
    minutes = {stage: seconds / 60 for stage, seconds in clock.seconds.items()}
    console = tables.console()
    console.print(table)
    console.print(
        f"chance: accuracy {100 / len(solids.CLASSES):.1f}. "
        f"minutes: {', '.join(f'{stage} {value:.1f}' for stage, value in minutes.items())}"
    )
    content = {
        "arms": {
            arm: {"fields": found.get(arm, limit)} | {m: e._asdict() for m, e in summary.items()}
            for arm, summary in summaries.items()
        },
        "minutes": minutes,
    }
    with replacing(path) as part:
        part.write_text(to_json(content, indent=2) + "\n")


def _percent(estimate: Estimate) -> str:
    error = "" if np.isnan(estimate.error) else f" ± {100 * estimate.error:.1f}"
    return f"{100 * estimate.value:.1f}{error}"


if __name__ == "__main__":
    command.run(main)
