"""The work directory of a run: its files, and the config of the run.

<workdir>/config.json       the config, one key per section
<workdir>/dataset.json      the facts of the data that the model depends on
<workdir>/checkpoints/      Orbax checkpoints, one directory per saved step
<workdir>/metrics.jsonl     one line of JSON per logged step
<workdir>/tensorboard/      the same metrics for TensorBoard, and the grids
<workdir>/samples/          grids as PNG
<workdir>/lock              a file that the training process locks
"""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import socket
from collections.abc import Iterator, Set
from typing import Any

from ddpm_jax import config as config_lib
from ddpm_jax.config import Config
from ddpm_jax.errors import UserError
from ddpm_jax.runtime.files import absolute, replacing

logger = logging.getLogger(__name__)

# Config keys that may differ when a run is resumed. They change how long the run continues, where
# it runs and what it writes, but not its training steps.
RESUMABLE = {
    "train.num_steps",
    "train.steps_per_call",
    "train.log_every",
    "train.sample_every",
    "train.num_samples",
    "train.checkpoint_every",
    "train.keep_last",
    "train.keep_every",
    "eval.every",
    "eval.samples_every",
    "eval.num_seeds",
    "mesh.data",
    "mesh.fsdp",
    "data.data_dir",
    "data.manual_dir",
    "data.allow_changed",
    "data.ram_limit_gb",
    "data.timeout_s",
    "sample.chunk_size",
}
# These keys may differ too if the run has a digest of its data: the data may have moved.
PLACES = {"data.codec", "data.path", "data.font_path", "data.emoji_test_path"}


@dataclasses.dataclass(frozen=True)
class DatasetFacts:
    """The facts of the data that the model depends on. They suffice to sample without the data.

    Attributes:
      image_shape: (H, W, C).
      num_classes: number of classes; 0 is no classes.
      class_names: the names of the classes, in the order of the labels.
      text: name of the encoder of the texts that the model receives; "" is no texts.
      digest: `data.Dataset.digest`; "" in a run of an old version, which did not store the digest.
      codec: the digest of the codec, if the run is on latents; "" is pixels.
      latent_mean, latent_deviation: the scale of the latents, per channel (`codec.Scale`).
      known: False for a run that was imported and not trained here yet: only the image shape and
        the number of classes that the network receives are known of its data.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    class_names: tuple[str, ...]
    text: str = ""
    digest: str = ""
    codec: str = ""
    latent_mean: tuple[float, ...] = ()
    latent_deviation: tuple[float, ...] = ()
    known: bool = True


@dataclasses.dataclass(frozen=True)
class WorkDir:
    """The paths of a run."""

    root: pathlib.Path

    @property
    def config(self) -> pathlib.Path:
        return self.root / "config.json"

    @property
    def dataset(self) -> pathlib.Path:
        return self.root / "dataset.json"

    @property
    def checkpoints(self) -> pathlib.Path:
        return self.root / "checkpoints"

    @property
    def metrics(self) -> pathlib.Path:
        return self.root / "metrics.jsonl"

    @property
    def tensorboard(self) -> pathlib.Path:
        return self.root / "tensorboard"

    @property
    def samples(self) -> pathlib.Path:
        return self.root / "samples"

    def newest_step(self) -> int:
        """Return the step of the newest checkpoint, which may be damaged; 0 if there is none."""
        found = self.checkpoints.glob("[0-9]*") if self.checkpoints.is_dir() else ()
        return max((int(path.name) for path in found if path.name.isdecimal()), default=0)


@contextlib.contextmanager
def locked(root: str | os.PathLike) -> Iterator[None]:
    """Lock the work directory inside `with`, so that no other training uses it.

    The directory is created if it does not exist. The kernel releases the lock when the process
    ends, also after a crash. Some file systems and Windows have no locks: then a warning is logged,
    and the training continues.

    Raises:
      UserError: the directory cannot be written, a file in it is a link, or another process trains
        there.
    """
    path = absolute(root) / "lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_links(path.parent)
        file = path.open("a+")
    except OSError as error:
        raise _not_writable(root, error) from error
    with file:
        try:
            import fcntl  # here: Windows has no fcntl, and reads runs without it

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(
                f"--workdir={root} is in use by another training ({file.read(200).strip()}); "
                "wait for its end or stop it, or choose another directory"
            ) from error
        except (ImportError, OSError) as error:
            logger.warning("%s cannot be locked (%s): start no second run here", path, error)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def warn_if_changed(root: str | os.PathLike, facts: DatasetFacts, digest: str) -> None:
    """Log a warning if the data are not those of the training; old runs have no digest.

    Args:
      root: the work directory, for the message.
      facts: the facts of the run's data.
      digest: `data.Dataset.digest` of the data now.
    """
    if facts.digest not in ("", digest):
        logger.warning(
            "the data have changed since %s was trained: %s then, %s now",
            root,
            facts.digest,
            digest,
        )


def check_same_run(root: str | os.PathLike, config: Config, facts: DatasetFacts) -> None:
    """Check that a work directory is new or has the same config and data; write nothing.

    Args:
      root: the work directory.
      config: the config of the run.
      facts: the facts of the data.

    Raises:
      UserError: the directory belongs to another run; the message names the differences.
    """
    _check_run(WorkDir(absolute(root)), config, facts)


def open_for_training(
    root: str | os.PathLike, config: Config, facts: DatasetFacts | None = None
) -> WorkDir:
    """Create the work directory, or open the directory of an earlier start of the same run.

    Args:
      root: the work directory.
      config: the config of the run; it is written to config.json. If the run is already beyond
        `train.num_steps`, this field keeps its value there.
      facts: the facts of the data; they are written to dataset.json. None writes no facts.

    Raises:
      UserError: the directory cannot be written, belongs to another config (the message names the
        keys that differ), or was trained on other data.
    """
    workdir = WorkDir(absolute(root))
    try:
        workdir.root.mkdir(parents=True, exist_ok=True)
        probe = workdir.root / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _not_writable(root, error) from error
    _check_run(workdir, config, facts)
    written = config_lib.to_dict(config)
    if workdir.config.exists() and workdir.newest_step() > config.train.num_steps:
        written["train"]["num_steps"] = read_config(workdir).train.num_steps
    _write_json(workdir.config, written)
    if facts:
        before = read_facts(workdir).digest if workdir.dataset.exists() else ""
        if before not in ("", facts.digest):
            logger.warning(
                "%s: the data have changed (data.allow_changed): %s before, %s now",
                root,
                before,
                facts.digest,
            )
        write_facts(workdir, facts)
    return workdir


def open_for_reading(root: str | os.PathLike) -> WorkDir:
    """Return the work directory of a trained run.

    Raises:
      UserError: `root` is not the work directory of a run, or a file in it is a link.
    """
    workdir = WorkDir(absolute(root))
    _check_links(workdir.root)
    if not workdir.config.exists() or not workdir.dataset.exists():
        raise UserError(
            f"{root} is not the work directory of a run: it has no "
            f"{workdir.config.name} and {workdir.dataset.name}; pass the --workdir of a training"
        )
    return workdir


def read_config(workdir: WorkDir) -> Config:
    """Read the config of a run.

    Raises:
      UserError: the file cannot be read, or it is not a valid config.
    """
    return config_lib.from_dict(_read_json(workdir.config))


def write_facts(workdir: WorkDir, facts: DatasetFacts) -> None:
    """Write the facts of the data to dataset.json."""
    _write_json(workdir.dataset, dataclasses.asdict(facts))


def read_facts(workdir: WorkDir) -> DatasetFacts:
    """Read the facts of the data of a run.

    Raises:
      UserError: the file cannot be read.
    """
    facts = _read_json(workdir.dataset)
    return DatasetFacts(
        tuple(facts["image_shape"]),
        facts["num_classes"],
        tuple(facts["class_names"]),
        facts.get("text", ""),
        facts.get("digest", ""),
        facts.get("codec", ""),
        tuple(facts.get("latent_mean", ())),
        tuple(facts.get("latent_deviation", ())),
        facts.get("known", True),
    )


def _check_links(root: pathlib.Path) -> None:
    """Refuse files that are links: in a run from a stranger, a write could change another file.

    Directories may be links, for checkpoints on a larger disk.
    """
    for directory, _, names in os.walk(root):  # skips files that a run removes during the walk
        for path in (os.path.join(directory, name) for name in names):
            if os.path.islink(path):
                raise UserError(
                    f"{path} is a link, and what a run writes must stay in its directory; "
                    "put a copy in its place, or remove it"
                )


def _not_writable(root: str | os.PathLike, error: OSError) -> UserError:
    return UserError(
        f"--workdir={root} cannot be written ({error.strerror}); choose another directory"
    )


def _check_same(root: str | os.PathLike, before: Config, now: Config, allowed: Set[str]) -> None:
    """Refuse a config that differs from the earlier config in a key outside `allowed`."""
    old, new = config_lib.flatten(before), config_lib.flatten(now)
    if now.optim.decay != "constant":
        allowed = allowed - {"train.num_steps"}  # not -=, which would change RESUMABLE
    differing = [key for key in old if old[key] != new[key] and key not in allowed]
    if differing:
        changes = ", ".join(f"{key}: {old[key]!r} there, {new[key]!r} now" for key in differing)
        raise UserError(
            f"--workdir={root} belongs to a run of another config ({changes}); choose another "
            "directory, or set these back to resume it"
        )


def _check_run(workdir: WorkDir, config: Config, facts: DatasetFacts | None) -> None:
    """Refuse a work directory of another config, or of other data if `facts` are given."""
    before = read_facts(workdir) if workdir.dataset.exists() else None
    if workdir.config.exists():
        known = bool(before and before.digest and facts and facts.digest)
        allowed = RESUMABLE | PLACES if known else RESUMABLE
        _check_same(workdir.root, read_config(workdir), config, allowed)
    if before and facts:
        _check_facts(workdir.root, before, facts, config.data.allow_changed)


def _check_facts(
    root: pathlib.Path, before: DatasetFacts, now: DatasetFacts, allow_changed: bool
) -> None:
    """Refuse data that do not fit the model, and changed data unless `allow_changed`."""
    if not before.known:
        num_classes = before.num_classes or now.num_classes  # 0: the network receives no label
        before = dataclasses.replace(
            now, image_shape=before.image_shape, num_classes=num_classes, codec=before.codec
        )
    measured = {name: getattr(now, name) for name in ("digest", "latent_mean", "latent_deviation")}
    if dataclasses.replace(before, **measured) == now:
        if before.digest in ("", now.digest) or allow_changed:
            return
        raise UserError(
            f"{root} was trained on other data: {before.digest} there, {now.digest} now; bring the "
            "old data back, choose another --workdir, or set data.allow_changed=True to go on with "
            "the new data"
        )
    went = [name for name in before.class_names if name not in now.class_names]
    came = [name for name in now.class_names if name not in before.class_names]
    changes = []
    if before.image_shape != now.image_shape:
        changes.append(f"images of {before.image_shape} are now {now.image_shape}")
    if before.num_classes != now.num_classes:
        changes.append(f"{before.num_classes} classes are now {now.num_classes}")
    if went:
        changes.append(f"gone: class {', '.join(map(repr, went))}")
    if came:
        changes.append(f"new: class {', '.join(map(repr, came))}")
    if before.class_names != now.class_names and not went and not came:
        changes.append("the classes are in another order")
    if before.codec != now.codec:
        changes.append(
            f"the codec {before.codec or 'none'!r} is now {now.codec or 'none'!r} (data.codec)"
        )
    if before.text != now.text:
        changes.append(f"the encoder of texts {before.text!r} is now {now.text!r}")
    raise UserError(
        f"{root} was trained on other data ({'; '.join(changes)}); bring the old data back "
        "or choose another --workdir"
    )


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Write a JSON file atomically."""
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n")


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
