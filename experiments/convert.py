"""Turn a model of another library into a run, or a run into a model of another library.

From a pipeline of diffusers, or a UNet2DModel, on the disk or on the Hugging Face Hub:

    python -m experiments.convert --from=PATH --workdir=runs/church

All commands read the run. To evaluate it or train it further, say on which data. The network, the
process and the sampler come from PATH; the rest comes from --config:

    python -m experiments.convert --from=google/ddpm-church-256 --workdir=runs/church
        --config=experiments/folder.py --config.data.path=IMAGES --config.data.image_size=256
    python -m experiments.train --config=runs/church/config.json

From a file of OpenAI's guided-diffusion or improved-diffusion. A published file is known by its
name; another file needs the code that trained it and the flags of its scripts:

    python -m experiments.convert --from=256x256_diffusion_uncond.pt --workdir=runs/imagenet
    python -m experiments.convert --from=ema_0.9999_200000.pt --workdir=runs/mine
        --openai_code=guided-diffusion --openai_flags="--image_size 64 --num_channels 192"

From a run to a folder that diffusers.DDPMPipeline.from_pretrained loads, with a model card:

    python -m experiments.convert --from=runs/church --to=PATH --licence=apache-2.0
"""

from absl import flags

from ddpm_jax.config import from_dict
from ddpm_jax.errors import UserError
from ddpm_jax.interop import from_diffusers, from_openai, hub, imported, to_diffusers
from ddpm_jax.interop.openai import DEFAULTS
from ddpm_jax.models import count_parameters
from ddpm_jax.runs.workdir import WorkDir
from ddpm_jax.runtime.files import absolute
from experiments import command, config_flag

FROM = flags.DEFINE_string(
    "from",
    None,
    "What to convert: a folder that diffusers saved, an id of the Hugging Face Hub such as "
    "google/ddpm-church-256 (needs the package huggingface_hub), a .pt file of OpenAI, or, with "
    "--to, the work directory of a run.",
    required=True,
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Work directory of the new run; it holds no run yet."
)
TO = flags.DEFINE_string(
    "to", None, "Folder of the new model of diffusers; it must be empty or not exist."
)
REVISION = flags.DEFINE_string(
    "revision", None, "Commit, tag or branch of a model of the Hub. Default: its main branch."
)
LICENCE = flags.DEFINE_string(
    "licence", "", "With --to: the Hub's name of the licence of the weights, such as apache-2.0."
)
STEP = flags.DEFINE_integer(
    "step", None, "With --to: training step of the checkpoint. Default: the newest checkpoint."
)
OPENAI_CODE = flags.DEFINE_enum(
    "openai_code",
    None,
    list(DEFAULTS),
    "For a .pt file: the code that trained it; classifier is that of guided-diffusion. Default: "
    "that of the published file of this name.",
)
OPENAI_FLAGS = flags.DEFINE_string(
    "openai_flags",
    None,
    "For a .pt file: the flags of OpenAI's scripts for it, in quotes. Default: those of the "
    "published file of this name.",
)
CONFIG = config_flag.define(
    "Config file of the data and the training of the new run. Its sections model, process and "
    "sample are not used. Default: the library's defaults.",
    required=False,
)


def main() -> None:
    if TO.value is not None:
        _write(TO.value)
    elif WORKDIR.value is not None:
        _read(WORKDIR.value)
    else:
        raise UserError("pass --workdir=DIRECTORY to make a run, or --to=PATH to write a model")


def _read(root: str) -> None:
    """Make a run of --from."""
    command.check_unused(("licence", "step"), "a conversion to --workdir")
    source = hub.locate(FROM.value or "", REVISION.value)
    if WorkDir(source.folder).config.exists() and WorkDir(source.folder).dataset.exists():
        raise UserError(
            f"--from={FROM.value} is a run already; pass --to=PATH to write a model of it"
        )
    config = None if CONFIG.value is None else from_dict(CONFIG.value)
    if source.folder.is_file():
        run = from_openai(
            source.folder, OPENAI_FLAGS.value, code=OPENAI_CODE.value or "", config=config
        )
    else:
        command.check_unused(("openai_code", "openai_flags"), "a model that is not a .pt file")
        run = from_diffusers(source.name, config, revision=source.revision or None)
    imported.write_run(run, root, source)
    height, width, channels = run.facts.image_shape
    revision = f", revision {source.revision}" if source.revision else ""
    print(f"{source.name}{revision}: {count_parameters(run.params):,} parameters")
    print(f"images of {height}x{width}x{channels}, {run.facts.num_classes or 'no'} classes")
    c = run.config
    print(f"process: {c.process.schedule}, T = {c.process.num_timesteps}; predicts {c.loss.kind}")
    print(f"sampler: {c.sample.sampler}, {c.sample.num_steps or c.process.num_timesteps} steps")
    print(f"run: {root}")


def _write(path: str) -> None:
    """Write --from as a model of diffusers."""
    unused = ("workdir", "revision", "config", "openai_code", "openai_flags")
    command.check_unused(unused, "a conversion to --to")
    to_diffusers(absolute(FROM.value or ""), path, step=STEP.value, licence=LICENCE.value)
    print(f"model of diffusers: {path}")


if __name__ == "__main__":
    command.run(main)
