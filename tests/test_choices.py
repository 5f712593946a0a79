"""Tables of names in a config: the options of a row, and options that nothing uses."""

import dataclasses

import pytest

from ddpm_jax import build
from ddpm_jax.build import loss
from ddpm_jax.build.processes import with_schedule
from ddpm_jax.config import LossConfig, ProcessConfig, SampleConfig
from ddpm_jax.config_checks import Choice, check_unused, choose
from ddpm_jax.errors import UserError

TABLE = {  # for `LossConfig.weighting`
    "a": Choice(lambda: "built a", ("p2_k", "p2_gamma")),
    "b": Choice(lambda: "built b", ("p2_k",)),
    "c": Choice(lambda: "built c"),
}


def test_a_row_takes_its_own_options():
    assert choose(TABLE, LossConfig(weighting="a", p2_k=2.0, p2_gamma=3.0), "weighting")() == (
        "built a"
    )
    assert choose(TABLE, LossConfig(weighting="b", p2_k=2.0), "weighting")() == "built b"
    assert choose(TABLE, LossConfig(weighting="c"), "weighting")() == "built c"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            LossConfig(weighting="c", p2_k=2.0),
            r"^loss.p2_k is 2.0, but loss.weighting=c does not use it \(a, b: yes\); "
            r"leave it at 1.0$",
        ),
        (LossConfig(weighting="b", p2_gamma=2.0), r"loss.p2_gamma is 2.0, .* \(a: yes\)"),
        (LossConfig(weighting="d"), "unknown loss.weighting 'd'; allowed: a, b, c"),
    ],
)
def test_options_of_other_rows_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        choose(TABLE, config, "weighting")


def test_what_uses_none_of_some_options_refuses_them():
    check_unused(LossConfig(weighting="vlb"), ("p2_k", "objective"), "a thing")
    with pytest.raises(UserError, match="^loss.weighting is 'vlb', but a thing does not use it; "):
        check_unused(LossConfig(weighting="vlb"), ("p2_k", "weighting"), "a thing")


def test_the_options_of_every_row_are_fields_of_its_section():
    for table, section in (
        (build.SCHEDULES, ProcessConfig),
        (loss.WEIGHTINGS, LossConfig),
        (loss.OBJECTIVES, LossConfig),
        (build.SAMPLERS, SampleConfig),
        (build.GRIDS, SampleConfig),
    ):
        fields = {field.name for field in dataclasses.fields(section)}
        for name, row in table.items():
            assert set(row.options) <= fields, name


def test_another_schedule_keeps_the_options_that_it_uses():
    config = ProcessConfig(num_timesteps=50, beta_1=0.01, beta_T=0.1, zero_terminal_snr=True)
    assert with_schedule(config, "quadratic") == dataclasses.replace(config, schedule="quadratic")
    constant = with_schedule(config, "constant")
    assert constant == ProcessConfig("constant", 50, beta_T=0.1, zero_terminal_snr=True)
    cosine = with_schedule(config, "cosine")
    assert cosine == ProcessConfig("cosine", 50, zero_terminal_snr=True)
    learned = ProcessConfig("learned", 50, gamma_min=-9.0)
    assert with_schedule(learned, "linear") == ProcessConfig("linear", 50)
    for name in build.SCHEDULES:
        assert build.process(with_schedule(config, name)).num_timesteps == 50
