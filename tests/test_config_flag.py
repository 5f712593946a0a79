"""--config=FILE:VARIANT and its overrides: what they set, and one line for each mistake."""

import dataclasses
import json
import pathlib

import pytest
from absl import flags
from absl.testing import flagsaver

import ddpm_jax
from ddpm_jax.config import from_dict, to_dict
from ddpm_jax.errors import UserError
from experiments import command, config_flag

ROOT = pathlib.Path(__file__).parents[1]
DIGITS = f"--config={ROOT}/experiments/digits.py"
EVERY_KIND = """
from __future__ import annotations
import dataclasses
from ml_collections import ConfigDict, config_dict

@dataclasses.dataclass
class Width:
    width: int = 7

def get_config(variant="plain"):
    config = ConfigDict({"a": {"n": 1, "x": 0.5, "on": False, "sides": (1, 2), "name": "u"}})
    config.a.needed = config_dict.placeholder(int)
    config.a.anything = config_dict.placeholder(object)
    config.a.width = Width().width
    config.variant = variant
    return config
"""


def parse(*words):
    """Parse a command line with the flag --config; return its ConfigDict."""
    values = flags.FlagValues()
    config = config_flag.define("The config.", values)
    try:
        values(["main", *words])
    except flags.UnrecognizedFlagError as error:
        raise config_flag.explain(error, values) from error
    return config.value


def refusal(*words):
    """Return the message with which a command line is refused."""
    with pytest.raises((UserError, flags.Error)) as error:
        parse(*words)
    return str(error.value)


@pytest.fixture
def write(tmp_path):
    """Write a config file in an empty directory and return its --config=PATH."""

    def write(text, name="mine.py"):
        (tmp_path / name).write_text(text)
        return f"--config={tmp_path / name}"

    return write


def test_a_file_and_its_variant_are_loaded(write):
    assert parse(DIGITS).data.name == "digits"
    assert parse(DIGITS.replace("digits", "emoji") + ":small").data.image_size == 16
    file = write(EVERY_KIND)
    assert parse(file).variant == "plain" and parse(f"{file}:a:b").variant == "a:b"
    assert parse(f"{file}:").variant == ""
    assert parse("--config", file.removeprefix("--config=")).a.width == 7
    other = write("def get_config(): return 3", "without_suffix")
    assert "must return an ml_collections.ConfigDict, found 3" in refusal(other)


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--config.a.n=3"], "n", 3),
        (["--config.a.n", "3"], "n", 3),
        (["-config.a.n=-3"], "n", -3),
        (["--config.a.n=3", "--config.a.n=4"], "n", 4),
        (["--config.a.needed=5"], "needed", 5),
        (["--config.a.x=2"], "x", 2.0),
        (["--config.a.x=1e-3"], "x", 1e-3),
        (["--config.a.on"], "on", True),
        (["--config.a.on=True"], "on", True),
        (["--config.a.on=1"], "on", True),
        (["--config.a.on", "--noconfig.a.on"], "on", False),
        (["--config.a.on=false"], "on", False),
        (["--config.a.sides=(1, 2, 4)"], "sides", (1, 2, 4)),
        (["--config.a.sides=1,2,4"], "sides", (1, 2, 4)),
        (["--config.a.sides=[1, 2]"], "sides", (1, 2)),
        (["--config.a.sides=(3,)"], "sides", (3,)),
        (["--config.a.sides=3"], "sides", (3,)),
        (["--config.a.sides=()"], "sides", ()),
        (["--config.a.sides=3", "--config.a.sides=4"], "sides", (3, 4)),
        (["--config.a.sides=/a/file"], "sides", ("/a/file",)),
        (["--config.a.name=3"], "name", "3"),
        (["--config.a.name="], "name", ""),
        (["--config.a.name=b=c"], "name", "b=c"),
        (["--config.a.anything={'b': 2}"], "anything", {"b": 2}),
        (["--config.a.anything=b c"], "anything", "b c"),
    ],
)
def test_an_override_has_the_type_of_its_field(write, words, field, value):
    found = parse(write(EVERY_KIND), *words).a.get_ref(field).get()
    assert found == value and type(found) is type(value)


def test_overrides_pass_the_configs_own_checks():
    words = ["--config.model.channel_multipliers=1,2", "--config.model.attention_resolutions=()"]
    config = from_dict(parse(DIGITS, *words, "--config.optim.learning_rate=1"))
    assert config.model.channel_multipliers == (1, 2) and config.model.attention_resolutions == ()
    assert config.optim.learning_rate == 1.0 and config.data.name == "digits"
    assert from_dict(parse(DIGITS)).optim.learning_rate != 1.0  # nothing is left of the first
    with pytest.raises(UserError, match="channel_multipliers must be a tuple of integers"):
        from_dict(parse(DIGITS, "--config.model.channel_multipliers=1,,2"))


def test_overrides_come_from_a_flagfile_too(tmp_path):
    (tmp_path / "flags").write_text(f"{DIGITS}\n--config.train.num_steps=3\n")
    assert parse(f"--flagfile={tmp_path / 'flags'}").train.num_steps == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "flag --config=None: name a config file, such as --config=experiments/digits.py"),
        ([DIGITS, DIGITS], "--config is given twice, the second time as "),
        (
            [DIGITS, "--config.train.num_step=3"],
            "unknown config key 'train.num_step'; did you mean train.num_steps?",
        ),
        (
            [DIGITS, "--config.clip_norm=3"],
            "unknown config key 'clip_norm'; did you mean optim.clip_norm?",
        ),
        (
            [DIGITS, "--config.trian.x=3"],
            "unknown config key 'trian.x'; sections: autoencoder, data, eval, loss, mesh, ",
        ),
        ([DIGITS, "--config.mesh.0123456=3"], "'mesh.0123456'; fields of config.mesh: mesh.data, "),
        ([DIGITS, "--config.mesh=3"], "config.mesh is a section; set its fields, such as --config"),
        (["--config.train.num_steps=3", DIGITS], "num_steps must come after --config=FILE"),
        (["--config.train.num_steps=3"], "--config.train.num_steps is given, but no config file"),
        (
            [DIGITS, "--config.train.num_steps=abc"],
            "--config.train.num_steps must be a whole number, found 'abc'",
        ),
        ([DIGITS, "--config.train.num_steps=1.5"], "must be a whole number, found '1.5'"),
        ([DIGITS, "--config.optim.b1=abc"], "--config.optim.b1 must be a number, found 'abc'"),
        (
            [DIGITS, "--config.data.flip=abc"],
            "--config.data.flip must be True or False, found 'abc'",
        ),
        ([DIGITS, "--config.train.num_steps"], "Missing value for flag --config.train.num_steps"),
        ([DIGITS, "--noconfig.train.seed"], "config.train.seed is not True or False"),
        ([DIGITS, "--wokdir=3"], "Unknown command line flag 'wokdir'"),
        (
            [DIGITS.replace("digits", "digit")],
            f"there is no file '{ROOT}/experiments/digit.py'; "
            f"did you mean {ROOT}/experiments/digits.py?",
        ),
        (["--config="], "there is no file ''"),
        ([f"--config={ROOT}"], f"there is no file '{ROOT}'"),
        ([f"{DIGITS}:small"], "experiments/digits.py has no variants; leave out ':small'"),
        (
            [DIGITS.replace("digits", "digits_bpd") + ":best"],
            "unknown variant of digits_bpd.py 'best'; allowed: hybrid, simple, vlb",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_named(words, message):
    found = refusal(*words)
    assert message in found and "\n" not in found


FRAME = "from experiments import base\n\ndef get_config():\n    config = base.get_config()\n{}\n"


@pytest.mark.parametrize(
    ("text", "number", "message"),
    [
        ("import no_such_module", 1, "ModuleNotFoundError: No module named 'no_such_module'"),
        ("\n\ndef get_config(:", 3, "SyntaxError: invalid syntax"),
        ("def f():\n  1\n 2", 3, "IndentationError: "),
        (FRAME.format("    config.train.seed = one"), 5, "NameError: name 'one' is not defined"),
        (
            FRAME.format("    config.model.chanels = 3"),
            5,
            "AttributeError: the config has no field 'chanels', did you mean 'channels'?;",
        ),
        (FRAME.format("    config.qwertz = 3"), 5, "the config has no field 'qwertz';"),
        (FRAME.format("    config.train.seed += config.train.sed"), 5, "'sed', did you mean 'seed"),
        (FRAME.format("    config.train.seed = 'one'"), 5, "TypeError: "),
        (FRAME.format("    {}[3]"), 5, "KeyError: 3"),
    ],
)
def test_a_mistake_in_a_config_file_is_named_with_its_line(write, text, number, message):
    file = write(text)
    found = refusal(file)
    assert found.startswith(f"{file.removeprefix('--config=')}, line {number}: ")
    assert message in found and found.endswith(f"; the line is: {text.splitlines()[-1].strip()}")


def test_a_mistake_in_a_file_that_the_config_file_imports_is_named_there(write, monkeypatch):
    write("\ndef other():\n    return 1 / 0\n", "beside_it.py")
    file = write("import beside_it\n\ndef get_config():\n    return beside_it.other()\n")
    directory = pathlib.Path(file.removeprefix("--config=")).parent
    monkeypatch.syspath_prepend(directory)
    monkeypatch.chdir(directory)
    assert refusal(file) == (
        "beside_it.py, line 3: ZeroDivisionError: division by zero; the line is: return 1 / 0"
    )


def test_a_file_that_is_no_text_is_named(write):
    file = write("config = '\0'\n")
    assert refusal(file).startswith(f"{file.removeprefix('--config=')}: ")


def test_the_config_of_a_run_is_a_config_file(write):
    config = from_dict({"model": {"channel_multipliers": (1, 3)}, "optim": {"learning_rate": 1e-3}})
    word = write(json.dumps(to_dict(config)), "config.json")
    found = parse(word, "--config.train.num_steps=7")
    train = dataclasses.replace(config.train, num_steps=7)
    assert from_dict(found) == dataclasses.replace(config, train=train)
    assert "unknown config key 'train.steps'" in refusal(word, "--config.train.steps=7")
    assert "unknown config key 'model.width'" in refusal(write('{"model": {"width": 1}}', "a.json"))
    assert "cannot be read: Expecting" in refusal(write("{", "b.json"))
    assert "is not the config.json of a run" in refusal(write("[1]", "c.json"))
    assert "is not the config.json of a run" in refusal(write('{"model": 1}', "d.json"))


def test_a_config_that_is_not_required_may_be_absent():
    values = flags.FlagValues()
    config = config_flag.define("The config.", values, required=False)
    values(["main"])
    assert config.value is None


def test_a_command_line_can_be_parsed_again(write):
    values = flags.FlagValues()
    config = config_flag.define("The config.", values)
    for n in (3, 4):
        values.unparse_flags()
        values(["main", write(EVERY_KIND), f"--config.a.n={n}"])
        assert config.value.a.n == n and config.value.is_locked


def test_a_file_without_a_config_is_refused(write):
    assert "mine.py has no function get_config()" in refusal(write("config = 3\n"))
    assert "found None" in refusal(write("def get_config():\n    pass\n", "none.py"))
    needs = write("def get_config(variant):\n    pass\n", "needs.py")
    assert "needs.py needs a variant: --config=" in refusal(needs)


def test_a_main_prints_the_line_and_exits_with_2(write, capsys):
    file = write(FRAME.format("    config.seed = 1"))
    with flagsaver.flagsaver():
        if "config" not in flags.FLAGS:
            config_flag.define("The config.")
        for words, line in (
            ([file], "mine.py, line 5: AttributeError: the config has no field 'seed'; the line "),
            ([DIGITS, "--config.seed=1"], "error: unknown config key 'seed'; did you mean train"),
            ([DIGITS, "--workdir"], "error: "),
        ):
            flags.FLAGS.unparse_flags()
            with pytest.raises(SystemExit) as stop:
                command._parse(["main", *words])
            out, err = capsys.readouterr()
            assert stop.value.code == 2 and out == "" and err.count("\n") == 1
            assert err.startswith("error: ") and line in err


def test_ml_collections_gives_the_config_its_type_and_does_not_load_it():
    """Its own flag calls load_module(), which Python 3.15 removes."""
    folders = [pathlib.Path(ddpm_jax.__file__).parent]
    folders += [ROOT / name for name in ("experiments", "benchmarks", "tests")]
    sources = [
        path
        for folder in folders
        for path in folder.rglob("*.py")
        if path != pathlib.Path(__file__)
    ]
    assert [str(path) for path in sources if "config_flags" in path.read_text()] == []
