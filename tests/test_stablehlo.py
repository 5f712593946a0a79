"""Samplers exported as programs: the images of the run, for any number, without our code."""

import json
import sys

import bare
import jax
import numpy as np
import pytest
from jax import export
from mains import run as run_main
from safetensors.numpy import load_file
from test_guided_runs import config_of, make_run
from tiny import make_config

from ddpm_jax import build
from ddpm_jax.build.overrides import override
from ddpm_jax.build.sampling import SAMPLERS
from ddpm_jax.errors import UserError
from ddpm_jax.interop import to_stablehlo
from ddpm_jax.models import Model
from ddpm_jax.pixels import to_uint8
from ddpm_jax.runs import open_run
from ddpm_jax.runs.open import Run
from ddpm_jax.runs.workdir import DatasetFacts

pytestmark = [
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
    pytest.mark.quick_to_compile,
]

FACTS = DatasetFacts((4, 4, 1), 3, ("a", "b", "c"))
KEY = jax.random.key(7)


def run_of(**changes):
    """A run with random weights, in memory. It predicts x_0, so its images are seldom saturated."""
    own = dict(data={}, process__num_timesteps=4, model__channels=4, model__num_groups=2)
    config = make_config(**own | {"loss__kind": "x_0"} | changes)
    chain = build.make_chain(config)
    joint = chain.joint(build.model(config.model, FACTS.image_shape, FACTS.num_classes))
    leaves, tree = jax.tree.flatten(joint.init(jax.random.key(0)))
    rng = np.random.default_rng(0)
    params = tree.unflatten([x + 0.1 * rng.normal(size=x.shape).astype("f") for x in leaves])
    process, params = chain.split(params)
    return Run(config, FACTS, process, joint, params, 1)


def opened(folder):
    """The program in a folder and its weights, as a stranger reads them."""
    program = export.deserialize(bytearray((folder / "sampler.bin").read_bytes()))
    return program, load_file(folder / "weights.safetensors")


def drawn(run, n, cond=None, **sample):
    """The images of the run itself, with fields of config.sample replaced."""
    run = run._replace(config=override(run.config, sample))
    return to_uint8(run.sample_fn()(run.params, KEY, n, cond))


def data_of(key):
    return jax.random.key_data(key)


def check_equal(run, folder, sizes=(2, 3), cond=lambda n: {}, **sample):
    """The exported program gives the images of the run, bit for bit."""
    program, weights = opened(to_stablehlo(run, folder, platforms=["cpu"], **sample))
    for n in sizes:
        given = cond(n)
        found = np.asarray(program.call(weights, data_of(KEY), np.arange(n), **given))
        given.pop("guidance", None)
        expected = drawn(run, n, given or None, **sample)
        assert found.dtype == np.uint8 and len(np.unique(found)) > 5
        np.testing.assert_array_equal(found, expected)


def linear_apply(params, x_t, t, cond=None, *, train=False, key=None):
    return params["scale"] * x_t + 0.1 * t[:, None, None, None]


def linear_run(**changes):
    """A run of a network that compiles in no time."""
    return run_of(**changes)._replace(
        model=Model(lambda key: {}, linear_apply), params={"scale": np.float32(0.2)}
    )


def test_a_program_gives_the_images_of_the_run_for_any_number_of_images(tmp_path):
    run = linear_run()
    program, weights = opened(to_stablehlo(run, tmp_path / "new" / "sampler", num_steps=3))
    assert program.platforms == ("cpu", "cuda", "tpu")
    expected = drawn(run, 5, num_steps=3)
    assert len(np.unique(expected)) > 40
    for numbers in ([0, 1, 2, 3, 4], [3]):
        found = program.call(weights, np.array([0, 7], np.uint32), np.array(numbers))
        np.testing.assert_array_equal(np.asarray(found), expected[numbers])


def test_the_facts_say_how_to_call_the_program(tmp_path):
    run = run_of(model__class_conditional=True)
    folder = to_stablehlo(run, tmp_path / "sampler", platforms=["tpu", "cpu"], sampler="ddim")
    facts, (program, weights) = json.loads((folder / "sampler.json").read_text()), opened(folder)
    assert facts["jax"] == jax.__version__ and facts["platforms"] == ["tpu", "cpu"]
    assert facts["calling_convention_version"] == program.calling_convention_version
    assert facts["sample"]["sampler"] == "ddim" and facts["class_names"] == ["a", "b", "c"]
    assert facts["step"] == 1 and facts["num_network_steps"] == 4
    (named, *_), others = jax.tree.unflatten(program.in_tree, program.in_avals)
    assert named.keys() == weights.keys()
    assert {k: v.shape for k, v in named.items()} == {k: v.shape for k, v in weights.items()}
    assert others.keys() == {"label", "guidance"} == facts["arguments"].keys() - {"key", "index"}
    for name, aval in others.items():
        stated = facts["arguments"][name]
        assert [str(d) for d in aval.shape] == stated["shape"] and aval.dtype == stated["dtype"]
    (result,) = program.out_avals
    assert [str(d) for d in result.shape] == facts["result"]["shape"] == ["n", "4", "4", "1"]


def test_weights_can_be_inside_the_program(tmp_path):
    run = linear_run()
    folder = to_stablehlo(run, tmp_path, platforms=["cpu"], weights="inside", sampler="ddim")
    assert sorted(path.name for path in folder.iterdir()) == ["sampler.bin", "sampler.json"]
    program = export.deserialize(bytearray((folder / "sampler.bin").read_bytes()))
    found = program.call(data_of(KEY), np.arange(2))
    np.testing.assert_array_equal(np.asarray(found), drawn(run, 2, sampler="ddim"))


@pytest.mark.slow
@pytest.mark.parametrize("w", [0.0, 2.0])
def test_labels_and_the_weight_of_guidance_are_arguments(tmp_path, w):
    make_run(tmp_path / "run", config_of(loss={"kind": "x_0"}, sample={"clip_x_0": True}))
    options = {"guidance_interval": (2, 4), "guidance_rescale": 0.5}
    folder = to_stablehlo(
        tmp_path / "run", tmp_path / "sampler", platforms=["cpu"], guidance=3.0, **options
    )
    program, weights = opened(folder)
    own = open_run(tmp_path / "run", sample={"guidance": w} | (options if w else {}))
    for label in ([0, 1, 2], [2, -1]):
        n, label = len(label), np.array(label, np.int32)
        found = program.call(weights, data_of(KEY), np.arange(n), label=label, guidance=w)
        expected = to_uint8(own.sample_fn()(own.params, KEY, n, {"label": label}))
        assert len(np.unique(found)) > 5
        np.testing.assert_array_equal(np.asarray(found), expected)


def test_a_run_without_a_null_class_has_no_argument_for_guidance(tmp_path):
    run = run_of(model__class_conditional=True, loss__p_uncond=0.0)
    program, _ = opened(to_stablehlo(run, tmp_path, platforms=["cpu"], sampler="ddim"))
    assert jax.tree.unflatten(program.in_tree, program.in_avals)[1].keys() == {"label"}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_can_be_exported(tmp_path, name):
    check_equal(linear_run(), tmp_path, sampler=name, num_steps=3, dynamic_threshold=0.9)


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.slow
def test_every_kind_of_network_can_be_exported(tmp_path):
    learned = dict(process__schedule="learned", model__fourier_features=(3,))
    check_equal(run_of(**learned), tmp_path / "1", sizes=[2])
    patches = dict(model__patch_size=2, model__channel_multipliers=(1, 2))
    variance = dict(model__learn_variance=True, loss__objective="hybrid")
    check_equal(run_of(**patches, **variance), tmp_path / "2", variance="learned_range")
    check_equal(
        run_of(model__super_resolution=2),
        tmp_path / "3",
        sizes=[2],
        cond=lambda n: {"image": np.clip(normal(n, 4, 4, 1), -1, 1)},
    )
    texts = dict(model__embedding_dim=5, model__context_dim=6, model__attention_resolutions=(4,))
    check_equal(
        run_of(**texts),
        tmp_path / "4",
        cond=lambda n: {
            "embedding": normal(n, 5),
            "context": normal(n, 2 * n, 6),  # also the length of the texts is any
            "context_mask": np.arange(2 * n)[None] < np.arange(1, n + 1)[:, None],
            "guidance": 0.0,
        },
    )


@pytest.mark.slow
def test_a_python_without_this_library_calls_the_program(tmp_path):
    run = run_of(model__channel_multipliers=(1, 1))
    to_stablehlo(run, tmp_path / "sampler", sampler="ddim")
    said = bare.run(
        """
import sys
import jax, numpy as np
from jax import export
from safetensors.numpy import load_file

program = export.deserialize(bytearray(open("sampler/sampler.bin", "rb").read()))
weights = load_file("sampler/weights.safetensors")
images = program.call(weights, jax.random.key_data(jax.random.key(7)), np.arange(3))
print(*np.asarray(images).ravel())
for name in ("ddpm_jax", "flax", "optax", "orbax"):
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit(name + " is there")
""",
        tmp_path,
    )
    found = np.array(said.split(), np.int32).reshape(3, 4, 4, 1)
    # another compilation: a pixel next to the middle of two values may be rounded the other way
    assert np.abs(found - drawn(run, 3, sampler="ddim")).max() <= 1


# What cannot be exported: one line each


def refused(match, run, path, **options):
    with pytest.raises(UserError, match=match) as error:
        to_stablehlo(run, path, **options)
    assert "\n" not in str(error.value)


def test_what_cannot_be_exported_is_refused_before_the_work(tmp_path, monkeypatch):
    run, new = run_of(), tmp_path / "new"
    refused("unknown platform 'gpu'; allowed: cpu, cuda, rocm, tpu", run, new, platforms=["gpu"])
    refused("platforms must be different names, at least one", run, new, platforms=[])
    refused("platforms must be different names", run, new, platforms=["cpu", "cpu"])
    refused("unknown place of the weights 'in'; .*allowed: beside, ins", run, new, weights="in")
    refused("unknown sample.sampler 'dimm'; did you mean 'ddim'", run, new, sampler="dimm")
    refused("unknown config key 'sample.steps'", run, new, steps=3)
    refused("the network does not predict its variance", run, new, variance="learned_range")
    refused("guidance is 1.0, but the model has no classes or texts", run, new, guidance=1.0)
    refused("is not the work directory of a run", tmp_path, new)
    for path in (tmp_path / "file", tmp_path / "folder" / "file"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
        refused("file cannot be written|file exists; choose", run, path)
        refused(r"cannot be written \(Not a directory\)", run, path / "new")
    refused("folder exists; choose a folder that does not", run, tmp_path / "folder")
    for name in ("flatbuffers", "safetensors"):
        monkeypatch.setitem(sys.modules, name, None)
        wanted = rf"package {name}, which is not installed: pip install 'ddpm_jax\[export\]'"
        refused(wanted, run, new)
        monkeypatch.undo()
    assert not new.exists()


@pytest.mark.slow
def test_the_main_exports_and_refuses_in_one_line(tmp_path):
    make_run(tmp_path / "run", config_of(model={"class_conditional": False}))
    flags = [f"--workdir={tmp_path / 'run'}", "--platforms=cpu,tpu", "--weights=inside"]
    done = run_main("export", *flags, "--num_steps=2")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run" / "exported" / "step1_2steps"
    assert f"folder: {folder}" in done.stdout and "for cpu, tpu" in done.stdout
    assert json.loads((folder / "sampler.json").read_text())["num_network_steps"] == 2
    for more, wanted in (
        (["--num_steps=2"], "step1_2steps exists; choose a folder that does not, or remove it"),
        (
            [f"--out={tmp_path / 'o'}", "--platforms=gpu"],
            "unknown platform 'gpu'; allowed: cpu, cuda, rocm, tpu",
        ),
        ([f"--out={tmp_path / 'o'}", "--num_steps=9"], "num_steps"),
    ):
        done = run_main("export", *flags, *more)
        line = [line for line in done.stderr.splitlines() if not line.startswith("INFO: ")]
        assert done.returncode == 2 and len(line) == 1 and wanted in line[0], done
    assert not (tmp_path / "o").exists()
