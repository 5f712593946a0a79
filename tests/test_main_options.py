"""The options of the mains: what cannot be is refused in one line, before the work."""

import numpy as np
import pytest
from mains import run as run_main
from test_guided_runs import config_of, make_run

pytestmark = [
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
    pytest.mark.quick_to_compile,
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A run of three classes whose weights are random, and images to edit."""
    root = tmp_path_factory.mktemp("options") / "run"
    make_run(root, config_of())
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), np.uint8)
    np.savez(root.parent / "images.npz", images=images)
    return root


def refusal(name, *flags):
    """Return the one line with which a main refuses its flags."""
    done = run_main(name, *flags)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("INFO: ")]
    assert done.returncode == 2 and len(lines) == 1, done
    assert done.stdout == ""
    return lines[0]


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63])
@pytest.mark.parametrize("name", ["sample", "edit", "figures"])
def test_a_seed_that_would_alias_is_refused(root, name, seed):
    flags = {"edit": ["--edit=sdedit"], "figures": ["--config=experiments/digits.py"]}
    line = refusal(name, f"--workdir={root}", f"--seed={seed}", *flags.get(name, []))
    assert "seed" in line and "[0, 4294967295]" in line
