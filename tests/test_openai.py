"""OpenAI's .pt files as runs: their numbers on weights by a rule, flags, and broken files."""

import functools

import jax
import numpy as np
import openai_cases as cases
import pytest
from mains import run as run_main

from ddpm_jax import build
from ddpm_jax.denoise import apply_network
from ddpm_jax.errors import UserError
from ddpm_jax.interop import from_openai, imported, openai
from ddpm_jax.interop.hub import Source
from ddpm_jax.pretrained.openai_unet import read_params
from ddpm_jax.runs import open_run

pytestmark = [
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
    pytest.mark.quick_to_compile,
]

CASE = next(iter(cases.CASES.values()))  # its code and its flags


@pytest.fixture(scope="module")
def theirs():
    return cases.fixture()


@pytest.fixture(scope="module")
def file(theirs, tmp_path_factory):
    """A file of the first case."""
    shapes = next(iter(theirs["cases"].values()))["shapes"]
    return cases.save(tmp_path_factory.mktemp("openai") / "model.pt", cases.weights(shapes))


def written(theirs, name, folder):
    return cases.save(folder / "any.pt", cases.weights(theirs["cases"][name]["shapes"]))


def check_numbers(theirs, name, folder):
    code, flags = cases.CASES[name]
    run = from_openai(written(theirs, name, folder), flags, code=code)
    x, t, label = cases.inputs(run.shape[0])
    cond = {"label": label.astype(np.int32)} if run.config.model.class_conditional else None
    compute = functools.partial(apply_network, run.process, run.model.apply, train=False, key=None)
    found = jax.jit(compute)(run.params, x, t + 1, cond)  # t counts from 1 here
    expected = theirs["cases"][name]["output"]
    np.testing.assert_allclose(cases.summary(found), expected, atol=1e-4)
    return run


def test_scale_shift_residual_resizing_legacy_attention_classes_and_variance(theirs, tmp_path):
    run = check_numbers(theirs, "guided, legacy attention", tmp_path)
    model = run.config.model
    assert model.scale_shift and model.resample == "residual" and model.learn_variance
    assert model.class_conditional and not model.null_class and model.head_dim == 16
    assert run.config.process.schedule == "cosine" and run.process.num_timesteps == 100
    assert run.config.sample.variance == "learned_range"


@pytest.mark.slow
@pytest.mark.parametrize("name", list(cases.CASES)[1:])
def test_the_numbers_are_theirs(theirs, tmp_path, name):
    check_numbers(theirs, name, tmp_path)


# one name of each network, as several files have the same
QUICK = "cifar10_uncond_50M_500K"
NETWORKS = {published: name for name, published in openai.PUBLISHED.items() if name != QUICK}


@pytest.mark.parametrize(
    "name",
    [QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS.values())],
)
def test_the_published_networks_have_their_number_of_parameters(theirs, tmp_path, name):
    code, options = openai._options(tmp_path / f"{name}.pt", None, "")
    network, _ = openai._network(code, options)
    make = build.classifier if network.model.name == "classifier" else build.model
    model = make(network.model, network.image_shape, network.num_classes)
    leaves = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
    assert sum(leaf.size for leaf in leaves) == theirs["parameters"][name]


def test_respacing_gives_their_timesteps(theirs, tmp_path):
    for (T, text), steps in zip(cases.RESPACINGS, theirs["respacings"], strict=True):
        flags = f"--diffusion_steps {T} --timestep_respacing {text} --use_ddim {'dd' in text}"
        found = openai._chain(openai._options(tmp_path / "x.pt", flags, "guided-diffusion")[1])
        grid = build.grid(found.sample, build.process(found.process))
        assert grid[:-1][::-1].tolist() == [t + 1 for t in steps]  # t counts from 1 here
        assert found.sample.sampler == ("ddim" if "dd" in text else "ancestral")


@pytest.mark.slow
def test_an_imported_model_is_an_ordinary_run(file, tmp_path):
    run = from_openai(file, CASE[1], code=CASE[0])
    imported.write_run(run, tmp_path / "run", Source(file, str(file)))
    again = open_run(tmp_path / "run")
    assert again.config == run.config and again.facts == run.facts
    jax.tree.map(np.testing.assert_array_equal, again.params, run.params)


def test_flags_choose_the_process_the_kind_and_the_variance(tmp_path):
    def chain(code, **flags):
        return openai._chain(openai._options(tmp_path / "x.pt", flags, code)[1])

    found = chain("guided-diffusion", predict_xstart=True, noise_schedule="cosine")
    assert found.kind == "x_0" and found.process.schedule == "cosine"
    assert found.sample.variance == "fixed_large" and found.sample.num_steps == 0
    small = chain("improved-diffusion", sigma_small="True", clip_denoised="False")
    assert small.sample.variance == "fixed_small" and not small.sample.clip_x_0
    options = openai._options(tmp_path / "x.pt", "--diffusion_steps 4000", "improved-diffusion")[1]
    assert openai._network("improved-diffusion", options)[0].model.time_scale == 0.25
    wide = openai._options(tmp_path / "512x512_diffusion.pt", None, "")
    model = openai._network(*wide)[0].model
    assert (model.channels, model.time_channels) == (128, 256)
    assert model.channel_multipliers == (1, 2, 2, 4, 4, 8, 8)


# What is refused: one line each


@pytest.mark.parametrize(
    "flags, line",
    [
        ("--num_chanels 3", "unknown flag of guided-diffusion: 'num_chanels'; did you mean 'num_c"),
        ("--class_cond maybe", "--class_cond must be True or False, found 'maybe'"),
        ("--num_res_blocks 1.5", "--num_res_blocks must be a whole number, found '1.5'"),
        ("--dropout 2", "config.model.dropout must be in [0, 1), found 2.0"),
        ("--diffusion_steps 0", "config.process.num_timesteps must be at least 1, found 0"),
        ("--dropout x", "--dropout must be a number, found 'x'"),
        ("image_size 64", "flags must be --name value or --name=value, found 'image_size'"),
        ("--image_size", "flags must be --name value or --name=value, found '--image_size'"),
        ("--image_size=48 --channel_mult=", "--image_size 48 cannot be represented; guided-diff"),
        ("--channel_mult 2,3", "--channel_mult 2,3 cannot be represented; each must be a multiple"),
        ("--channel_mult 1,x", "--channel_mult must be whole numbers such as 32,16,8, found '1,x'"),
        ("--attention_resolutions 0", "--attention_resolutions must be whole numbers"),
        ("--noise_schedule sqrt", "--noise_schedule sqrt cannot be represented; only linear or"),
        ("--timestep_respacing 10,5", "--timestep_respacing 10,5 cannot be represented; only N or"),
        ("--timestep_respacing ddim7", "N must divide diffusion_steps = 100"),
        ("--timestep_respacing 101", "with N in 1..100"),
        (
            "--num_head_channels -1 --num_heads 2 --num_heads_upsample 4",
            "--num_heads_upsample 4 cannot be represented; all levels",
        ),
    ],
)
def test_a_flag_that_cannot_be_represented_is_refused_by_name(file, flags, line):
    refused(line, file, f"{CASE[1]} {flags}" if flags[0] == "-" else flags, code=CASE[0])


def refused(line, *args, **options):
    with pytest.raises(UserError) as error:
        from_openai(*args, **options)
    assert line in str(error.value) and "\n" not in str(error.value), error.value


def test_a_file_that_does_not_fit_is_refused_by_its_first_fault(theirs, file, tmp_path):
    run, changed = from_openai(file, CASE[1], code=CASE[0]), tmp_path / "changed.pt"
    state = cases.weights(next(iter(theirs["cases"].values()))["shapes"])

    def broken(line, **changes):
        kept = {name: value for name, value in (state | changes).items() if value is not None}
        with pytest.raises(UserError) as error:
            read_params(cases.save(changed, kept), run.params, run.config.model, legacy=True)
        assert line in str(error.value) and "\n" not in str(error.value), error.value

    broken("has no weight 'label_emb.weight'", **{"label_emb.weight": None})
    broken("has no weight 'middle_block.1.qkv.weight'", **{"middle_block.1.qkv.weight": None})
    wrong = {"middle_block.1.qkv.weight": np.zeros((4, 4), "f")}
    broken("middle_block.1.qkv.weight has the shape [4, 4], which is not [3 C, C]", **wrong)
    wrong = {"out.2.weight": np.zeros((3, 32, 3, 3), "f")}
    broken("out.2.weight has the shape [3, 32, 3, 3], but this network needs [6, 32,", **wrong)
    broken("has a weight that nothing uses: 'more'", more=np.zeros(1, "f"))
    changed.write_bytes(changed.read_bytes()[:-1000])
    refused("changed.pt", changed, CASE[1], code=CASE[0])
    refused("missing.pt", tmp_path / "missing.pt", CASE[1], code=CASE[0])


def test_a_file_of_an_unknown_name_needs_its_code(tmp_path):
    refused("mine.pt is not the name of a published file (64x64_diffusion, ", tmp_path / "mine.pt")
    refused("is an upsampler, which cannot be", tmp_path / "64_256_upsampler.pt")
    refused("unknown code 'guided'", tmp_path / "mine.pt", "", code="guided")
    refused("cannot be read", tmp_path / "64x64_classifier.pt")


# The main


@pytest.mark.slow
def test_the_main_makes_runs_that_sample_and_guide(theirs, file, tmp_path):
    code, flags = cases.CASES["guided, legacy attention"]
    judged = cases.weights(theirs["cases"]["classifier"]["shapes"])
    for path, own, kind, target in (
        (file, f"{flags} --timestep_respacing 2", code, "run"),
        (
            cases.save(tmp_path / "judge.pt", judged),
            cases.CASES["classifier"][1],
            "classifier",
            "j",
        ),
    ):
        done = run_main(
            "convert",
            f"--from={path}",
            f"--workdir={tmp_path / target}",
            f"--openai_code={kind}",
            f"--openai_flags={own}",
        )
        assert done.returncode == 0, done.stderr
        assert "1000 classes" in done.stdout
    done = run_main("sample", f"--workdir={tmp_path / 'run'}", "--n=2", f"--out={tmp_path / 'x'}")
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "x.npz")["images"].shape == (2, 16, 16, 3)
    done = run_main(
        "sample", f"--workdir={tmp_path / 'run'}", f"--classifier={tmp_path / 'j'}", "--n=2"
    )
    assert done.returncode == 2 and "its image shape is (64, 64, 3)" in done.stderr


def test_the_main_refuses_in_one_line(file, tmp_path):
    for flags, wanted in (
        ([f"--from={file}"], "model.pt is not the name of a published file"),
        ([f"--from={file}", "--openai_code=x"], "openai_code"),
        ([f"--from={tmp_path}", "--openai_flags=x"], "a model that is not a .pt file does not use"),
    ):
        done = run_main("convert", f"--workdir={tmp_path / 'new'}", *flags)
        lines = done.stderr.strip().splitlines()
        assert done.returncode == 2 and len(lines) == 1 and wanted in lines[0], done
    assert not (tmp_path / "new").exists()
