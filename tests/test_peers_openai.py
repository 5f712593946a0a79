"""Side by side with OpenAI's own code, on random weights: networks and whole sampling.

Needs PyTorch and copies of the two repositories. These variables name their directories:
DDPM_JAX_GUIDED_DIFFUSION (github.com/openai/guided-diffusion) and DDPM_JAX_IMPROVED_DIFFUSION
(github.com/openai/improved-diffusion).
"""

import importlib
import json
import os
import re
import sys

import jax
import numpy as np
import openai_cases as cases
import pytest

from ddpm_jax.interop import from_openai
from ddpm_jax.interop.openai import CLASSIFIER, GUIDED, IMPROVED, PUBLISHED

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
    pytest.mark.quick_to_compile,
]

VARIABLES = {GUIDED: "DDPM_JAX_GUIDED_DIFFUSION", IMPROVED: "DDPM_JAX_IMPROVED_DIFFUSION"}


def their(code, module):
    """A module of their code."""
    code = GUIDED if code == CLASSIFIER else code
    place = os.environ.get(VARIABLES[code])
    if not place:
        pytest.skip(f"{VARIABLES[code]} does not name a copy of {code}")
    if place not in sys.path:
        sys.path.insert(0, place)
    return importlib.import_module(f"{code.replace('-', '_')}.{module}")


def with_flags(defaults, flags):
    """Their defaults, changed by flags of their form."""
    words = flags.split()
    given = dict(zip((w[2:] for w in words[::2]), words[1::2], strict=True))

    def typed(name, value):
        kind = type(defaults[name])
        return value == "True" if kind is bool else kind(value)

    return defaults | {name: typed(name, value) for name, value in given.items()}


def their_network(code, flags):
    """Their network of some flags, and their diffusion."""
    util = their(code, "script_util")
    if code == CLASSIFIER:
        defaults = util.classifier_and_diffusion_defaults()
        return util.create_classifier_and_diffusion(**with_flags(defaults, flags))
    defaults = util.model_and_diffusion_defaults()
    return util.create_model_and_diffusion(**with_flags(defaults, flags))


def loaded(code, flags):
    network, diffusion = their_network(code, flags)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    state = {name: torch.tensor(w) for name, w in cases.weights(shapes).items()}
    network.load_state_dict(state)
    return network.eval(), diffusion, shapes


def their_output(code, flags):
    """What their network computes for our inputs: [2, H, W, C] or [2, classes]."""
    network, diffusion, shapes = loaded(code, flags)
    x, t, label = cases.inputs(int(re.search(r"--image_size (\d+)", flags)[1]))
    given = {"y": torch.tensor(label)} if "class_cond True" in flags else {}
    with torch.no_grad():
        model = diffusion._wrap_model(network)  # scales t
        out = model(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(t), **given)
    out = out.permute(0, 2, 3, 1) if out.ndim == 4 else out
    return out.numpy(), shapes


@pytest.mark.parametrize("name", cases.CASES)
def test_the_fixture_is_what_their_code_computes(name):
    code, flags = cases.CASES[name]
    output, shapes = their_output(code, flags)
    expected = cases.fixture()["cases"][name]
    assert {k: list(v) for k, v in shapes.items()} == expected["shapes"]
    np.testing.assert_allclose(cases.summary(output), expected["output"], atol=2e-5)


def test_their_respacings_are_those_of_the_fixture():
    for (T, text), steps in zip(cases.RESPACINGS, cases.fixture()["respacings"], strict=True):
        assert sorted(their(GUIDED, "respace").space_timesteps(T, text)) == steps


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_networks_have_their_number_of_parameters(name):
    code, flags = PUBLISHED[name]
    with torch.device("meta"):
        network, _ = their_network(code, flags)
    found = sum(p.numel() for p in network.parameters())
    assert found == cases.fixture()["parameters"][name]


@pytest.mark.parametrize("ddim", [False, True])
@pytest.mark.parametrize("name", ["guided, legacy attention", "improved"])
def test_whole_sampling_gives_their_images(tmp_path, monkeypatch, name, ddim):
    code, flags = cases.CASES[name]
    flags = f"{flags} --timestep_respacing {'ddim5' if ddim else '5'}"
    network, diffusion, shapes = loaded(code, flags)
    file = cases.save(tmp_path / "model.pt", cases.weights(shapes))
    run = from_openai(file, f"{flags} --use_ddim {ddim}", code=code)
    n, shape = 2, run.facts.image_shape
    noise = np.random.RandomState(1).standard_normal((6, n, *shape)).astype(np.float32)
    queue = list(noise[1:])
    draw = lambda like: torch.tensor(queue.pop(0)).permute(0, 3, 1, 2)  # noqa: E731
    monkeypatch.setattr(torch, "randn_like", draw)
    label = np.array([5, 999], np.int32)
    conditional = run.config.model.class_conditional
    loop = diffusion.ddim_sample_loop if ddim else diffusion.p_sample_loop
    with torch.no_grad():
        found = loop(
            network,
            (n, 3, *shape[:2]),
            noise=torch.tensor(noise[0]).permute(0, 3, 1, 2),
            model_kwargs={"y": torch.tensor(label)} if conditional else {},
            device="cpu",
        )
    grid = sorted(diffusion.use_timesteps)
    recording = np.zeros((run.process.num_timesteps + 1, n, *shape), np.float32)
    recording[np.array(grid[::-1]) + 1] = noise[1:]  # t counts from 1 here
    recording = jax.numpy.asarray(recording)
    options = dict(x_T=noise[0], noise=lambda key, t, shape: recording[t])
    cond = {"label": label} if conditional else None
    ours = run.sample_fn()(run.params, jax.random.key(0), n, cond, **options)
    assert np.abs(ours).std() > 0.1
    np.testing.assert_allclose(ours, found.permute(0, 2, 3, 1), atol=1e-3)


def write():
    """Write the fixture."""
    content = {"cases": {}, "respacings": [], "parameters": {}}
    for name, (code, flags) in cases.CASES.items():
        output, shapes = their_output(code, flags)
        content["cases"][name] = {"output": cases.summary(output), "shapes": shapes}
    for T, text in cases.RESPACINGS:
        content["respacings"].append(sorted(their(GUIDED, "respace").space_timesteps(T, text)))
    for name, (code, flags) in PUBLISHED.items():
        with torch.device("meta"):
            network, _ = their_network(code, flags)
        content["parameters"][name] = sum(p.numel() for p in network.parameters())
    lines = json.dumps(content).replace('"shapes": {', '\n"shapes": {').replace("]}}", "]}}\n")
    cases.FIXTURE.write_text(lines + "\n")


if __name__ == "__main__":
    os.environ |= dict(zip(VARIABLES.values(), sys.argv[1:], strict=True))
    write()
    print(cases.FIXTURE)
