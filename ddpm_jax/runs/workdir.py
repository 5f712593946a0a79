"""The work directory of a run: where things lie, and the config that it belongs to.

<workdir>/config.json       the config, one section a key
<workdir>/dataset.json      the facts of the data that the model depends on
<workdir>/checkpoints/      Orbax, one directory a step
<workdir>/metrics.jsonl     one line of JSON per logged step
<workdir>/tensorboard/      the same for TensorBoard, and the grids
<workdir>/samples/          grids as PNG
<workdir>/lock              held by the process that trains here
"""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import Any

from ddpm_jax import config as config_lib
from ddpm_jax.config import Config
from ddpm_jax.errors import UserError
from ddpm_jax.runtime.files import replacing

logger = logging.getLogger(__name__)

# What may differ when a run is resumed: these change how long it goes on and what is written.
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
    "data.ram_limit_gb",
    "data.timeout_s",
    "sample.chunk_size",
}


@dataclasses.dataclass(frozen=True)
class DatasetFacts:
    """What the model needs to know of its data: enough to sample without them."""

    image_shape: tuple[int, int, int]
    num_classes: int
    class_names: tuple[str, ...]
    text: str = ""  # the encoder of the texts that the model is told; "" is none


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


@contextlib.contextmanager
def locked(root: str | os.PathLike) -> Iterator[None]:
    """Make the directory if need be and keep other trainings out of it while inside `with`.

    The kernel lets go of the lock when the process ends, however it ends. Where there is no lock
    (on some file systems, and on Windows), a line says so, and the training goes on.

    Raises:
      UserError: it cannot be written, a file in it is a link, or another process trains there.
    """
    path = _absolute(root) / "lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_links(path.parent)
        file = path.open("a+")
    except OSError as error:
        raise _not_writable(root, error) from error
    with file:
        try:
            import fcntl  # here: Windows does not have it, and reads runs without it

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


def check_same_run(root: str | os.PathLike, config: Config, facts: DatasetFacts) -> None:
    """Refuse a work directory of another config or of other data; nothing is written.

    Raises:
      UserError: it belongs to another run; the message names what differs.
    """
    workdir = WorkDir(_absolute(root))
    if workdir.config.exists():
        _check_same(root, read_config(workdir), config)
    if workdir.dataset.exists():
        _check_facts(workdir, facts)


def open_for_training(root: str | os.PathLike, config: Config) -> WorkDir:
    """Create the work directory, or open the one of an earlier start of the same run.

    Raises:
      UserError: it cannot be written, or belongs to another config (the differing keys are named).
    """
    workdir = WorkDir(_absolute(root))
    try:
        workdir.root.mkdir(parents=True, exist_ok=True)
        probe = workdir.root / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _not_writable(root, error) from error
    if workdir.config.exists():
        _check_same(root, read_config(workdir), config)
    _write_json(workdir.config, config_lib.to_dict(config))
    return workdir


def open_for_reading(root: str | os.PathLike) -> WorkDir:
    """Return the work directory of a run that was trained.

    Raises:
      UserError: it is not one, or a file in it is a link.
    """
    workdir = WorkDir(_absolute(root))
    _check_links(workdir.root)
    if not workdir.config.exists() or not workdir.dataset.exists():
        raise UserError(
            f"{root} is not the work directory of a run: it has no "
            f"{workdir.config.name} and {workdir.dataset.name}; pass the --workdir of a training"
        )
    return workdir


def read_config(workdir: WorkDir) -> Config:
    """Read the config of a run."""
    return config_lib.from_dict(_read_json(workdir.config))


def write_facts(workdir: WorkDir, facts: DatasetFacts) -> None:
    """Write the facts of the data beside the config.

    Raises:
      UserError: the run was trained on data of another shape or of other classes.
    """
    if workdir.dataset.exists():
        _check_facts(workdir, facts)
    _write_json(workdir.dataset, dataclasses.asdict(facts))


def read_facts(workdir: WorkDir) -> DatasetFacts:
    """Read the facts of the data of a run."""
    facts = _read_json(workdir.dataset)
    return DatasetFacts(
        tuple(facts["image_shape"]),
        facts["num_classes"],
        tuple(facts["class_names"]),
        facts.get("text", ""),
    )


def _absolute(root: str | os.PathLike) -> pathlib.Path:
    """Return the absolute path; ~ is the home directory."""
    return pathlib.Path(os.path.expanduser(root)).absolute()


def _check_links(root: pathlib.Path) -> None:
    """Refuse files that are links: in a stranger's run they would lead what is written elsewhere.

    Directories may be links, for checkpoints on a larger disk.
    """
    for directory, _, names in os.walk(root):  # what a run removes meanwhile is passed over
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


def _check_same(root: str | os.PathLike, before: Config, now: Config) -> None:
    """Refuse to go on with a config that makes it another run."""
    old, new = config_lib.flatten(before), config_lib.flatten(now)
    allowed = RESUMABLE if now.optim.decay == "constant" else RESUMABLE - {"train.num_steps"}
    differing = [key for key in old if old[key] != new[key] and key not in allowed]
    if differing:
        changes = ", ".join(f"{key}: {old[key]!r} there, {new[key]!r} now" for key in differing)
        raise UserError(
            f"--workdir={root} belongs to a run of another config ({changes}); choose another "
            "directory, or set these back to resume it"
        )


def _check_facts(workdir: WorkDir, now: DatasetFacts) -> None:
    """Refuse to go on with data of another shape or of other classes."""
    before = read_facts(workdir)
    if before == now:
        return
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
    if before.text != now.text:
        changes.append(f"the encoder of texts {before.text!r} is now {now.text!r}")
    raise UserError(
        f"{workdir.root} was trained on other data ({'; '.join(changes)}); bring the old data back "
        "or choose another --workdir"
    )


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Write a file of JSON, whole or not at all."""
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n")


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
