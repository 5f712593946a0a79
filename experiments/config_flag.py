"""The flag --config=FILE.py or --config=FILE.py:VARIANT, and the flags that override its fields.

A config file is Python code with a function `get_config`. The variant, if given, is its argument.
The config.json of a run is a config file too.
Each field of the returned config becomes a flag: --config.train.num_steps=10.
"""

import ast
import difflib
import importlib.machinery
import importlib.util
import inspect
import json
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from ddpm_jax.config import from_dict, to_dict
from ddpm_jax.errors import UserError, unknown

flags.disclaim_key_flags()  # so --help of a main lists --config with the flags of the main


def define(
    help_string: str, flag_values: flags.FlagValues = flags.FLAGS, *, required: bool = True
) -> flags.FlagHolder:
    """Define the flag --config; its value is a locked ConfigDict.

    Args:
      help_string: the help text of the flag.
      flag_values: the flags of the program.
      required: whether the flag must be given; otherwise its value can be None.
    """
    holder = flags.DEFINE_flag(_ConfigFlag(help_string, flag_values), flag_values)
    if not required:
        return holder
    flags.register_validator(
        "config",
        lambda config: config is not None,
        "name a config file, such as --config=experiments/digits.py",
        flag_values,
    )
    return holder


def default_workdir() -> str:
    """Return runs/NAME, where NAME is the name of the config file without .py.

    For the config.json of a run, return the work directory of the run.
    """
    flag: Any = flags.FLAGS["config"]  # a _ConfigFlag
    if flag.path.suffix == ".json":
        return str(flag.path.parent)
    return os.path.join("runs", flag.path.stem)


def load(argument: str) -> ConfigDict:
    """Run get_config() of a config file and return the config, locked.

    Args:
      argument: FILE.py, or FILE.py:VARIANT, or the config.json of a run.

    Raises:
      UserError: there is no such file, or the file has a mistake; the message names the line.
    """
    name, colon, variant = argument.partition(":")
    path, arguments = pathlib.Path(name), [variant] if colon else []
    if not path.is_file():
        files = [file.name for file in path.parent.glob("*.py")]
        nearest = difflib.get_close_matches(path.name, files, n=1)
        hint = f"; did you mean {path.parent / nearest[0]}?" if nearest else ""
        raise UserError(f"--config={argument}: there is no file {name!r}{hint}")
    if path.suffix == ".json":
        return _of_run(argument, path)
    try:
        loader = importlib.machinery.SourceFileLoader("_config_file", str(path))
        spec = importlib.util.spec_from_file_location(loader.name, path, loader=loader)
        assert spec is not None  # because the loader is given
        module = importlib.util.module_from_spec(spec)
        sys.modules[loader.name] = module  # dataclasses in the file look up their module here
        loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        if not callable(get_config):
            raise UserError(f"--config={argument}: {name} has no function get_config()")
        _check_variant(argument, get_config, arguments)
        config = get_config(*arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError(_describe(error, path)) from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"--config={argument}: get_config() must return an ml_collections.ConfigDict, "
            f"found {config!r}"
        )
    return config.lock()


def _of_run(argument: str, path: pathlib.Path) -> ConfigDict:
    """Return the config in the config.json of a run, locked."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--config={argument} cannot be read: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(v, dict) for v in content.values()):
        raise UserError(f"--config={argument} is not the config.json of a run")
    return ConfigDict(to_dict(from_dict(content))).lock()


def explain(
    error: flags.UnrecognizedFlagError, flag_values: flags.FlagValues = flags.FLAGS
) -> Exception:
    """Return an error that explains an unknown flag; for a config key, it names the nearest one."""
    flag, key = error.flagname, error.flagname.removeprefix("no").removeprefix("config.")
    if "config" not in flag_values or not flag.removeprefix("no").startswith("config."):
        return error
    if flag_values["config"].value is None:
        return UserError(f"--{flag} is given, but no config file; add --config=FILE")
    keys = [name.removeprefix("config.") for name in flag_values if name.startswith("config.")]
    if key in keys:
        if flag.startswith("no"):
            return UserError(f"--{flag} is given, but config.{key} is not True or False")
        return UserError(f"--{flag} must come after --config=FILE")
    if below := [other for other in keys if other.startswith(f"{key}.")]:
        return UserError(f"config.{key} is a section; set its fields, such as --config.{below[0]}")
    field = key.rpartition(".")[2]
    nearest = difflib.get_close_matches(key, keys, n=1)
    elsewhere = [other for other in keys if other.rpartition(".")[2] == field]
    if hints := elsewhere or nearest:
        return UserError(f"unknown config key {key!r}; did you mean {' or '.join(hints)}?")
    section = key.partition(".")[0]
    fields = [other for other in keys if other.startswith(f"{section}.")]
    allowed = fields or sorted({other.partition(".")[0] for other in keys})
    what = f"fields of config.{section}" if fields else "sections"
    return UserError(f"unknown config key {key!r}; {what}: {', '.join(allowed)}")


class _ConfigFlag(flags.Flag):
    """The flag --config: loads the file and defines a flag for each field."""

    def __init__(self, help_string: str, flag_values: flags.FlagValues):
        self._flag_values = flag_values
        super().__init__(flags.ArgumentParser(), None, "config", None, help_string)

    def parse(self, argument: str) -> None:
        if self.present:
            raise UserError(f"--config is given twice, the second time as {argument}")
        self.path = pathlib.Path(argument.partition(":")[0])
        self.value = config = load(argument)
        self.present += 1
        self._define_fields("config", config)

    def _define_fields(self, prefix: str, config: ConfigDict) -> None:
        for field in config:
            name, kind = f"{prefix}.{field}", config.get_type(field)
            value: Any = config[field]
            if kind is ConfigDict:
                self._define_fields(name, value)
            elif kind in _PARSERS:
                flag = _FieldFlag(name, config, field, kind)
                flags.DEFINE_flag(flag, self._flag_values, module_name=__name__)


class _FieldFlag(flags.Flag):
    """The flag --config.SECTION.FIELD: sets this field of the config."""

    def __init__(self, name: str, config: ConfigDict, field: str, kind: type):
        super().__init__(
            _PARSERS[kind],
            None,
            name,
            None,
            f"Overrides {name}.",
            boolean=kind is bool,
            allow_override=True,  # the command line may be parsed again
        )
        self._config, self._field, self._kind = config, field, kind

    def parse(self, argument: str) -> None:
        value: Any
        try:
            value = self.parser.parse(argument)
        except (TypeError, ValueError) as error:
            kind = _KINDS[self._kind]
            raise UserError(f"--{self.name} must be {kind}, found {argument!r}") from error
        if self._kind is tuple and self.present:
            value = (self.value or ()) + value
        self._config[self._field] = self.value = value
        self.present += 1


class _TupleParser(flags.ArgumentParser):
    """Parse (1, 2), 1,2 and [1, 2] as tuples, and anything else as a tuple of one."""

    def parse(self, argument: str) -> tuple:
        value = _literal(argument)
        return tuple(value) if isinstance(value, (tuple, list)) else (value,)


class _LiteralParser(flags.ArgumentParser):
    """Parse Python literals, such as numbers and tuples; anything else is a string."""

    def parse(self, argument: str) -> Any:
        return _literal(argument)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


_PARSERS = {
    bool: flags.BooleanParser(),
    float: flags.FloatParser(),
    int: flags.IntegerParser(),
    object: _LiteralParser(),
    str: flags.ArgumentParser(),
    tuple: _TupleParser(),
}
_KINDS = {bool: "True or False", float: "a number", int: "a whole number"}  # others never fail


def _check_variant(argument: str, get_config: Any, arguments: list[str]) -> None:
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError as error:
        name, _, variant = argument.partition(":")
        what = (
            f"{name} has no variants; leave out {':' + variant!r}"
            if arguments
            else f"{name} needs a variant: --config={name}:VARIANT"
        )
        raise UserError(f"--config={argument}: {what}") from error


def _describe(error: Exception, path: pathlib.Path) -> str:
    """Return one line: the file, the line number, the error, and the text of the line.

    The file is `path` or a file in the same directory.
    """
    directory, message = path.resolve().parent, _message(error)
    filename, number, line = str(path), None, None
    if isinstance(error, SyntaxError) and error.filename:
        filename, number, line, message = error.filename, error.lineno, error.text, error.msg
    else:
        for frame in traceback.extract_tb(error.__traceback__)[1:]:  # the first is this module
            file = pathlib.Path(frame.filename).resolve()
            if file.parent == directory:
                filename, number, line = frame.filename, frame.lineno, frame.line
    if pathlib.Path(filename).is_relative_to(pathlib.Path.cwd()):
        filename = os.path.relpath(filename)
    where = filename if number is None else f"{filename}, line {number}"
    quoted = f"; the line is: {line.strip()}" if line and line.strip() else ""
    return f"{where}: {type(error).__name__}: {message}{quoted}"


def _message(error: Exception) -> str:
    """Return the message of an error; shorten ConfigDict's message, which quotes all fields."""
    message = str(error)
    if found := re.search(r'Did you mean "(.+?)" instead of "(.+?)"', message):
        return f"the config has no field {found[2]!r}, did you mean {found[1]!r}?"
    if found := re.search(r'Key "(.+?)" does not exist', message):
        return f"the config has no field {found[1]!r}"
    return message


def check_sections(
    mapping: Mapping[str, Any], sections: Sequence[str], command: str, example: str
) -> None:
    """Check that the config of a command of several runs has the sections that it needs.

    Args:
      mapping: the ConfigDict of --config.
      sections: the names of the sections.
      command: the name of the command in `experiments`.
      example: the name of a config file that has them.

    Raises:
      UserError: a section is missing, or is one too many.
    """
    for section in sections:
        if section not in mapping:
            raise UserError(
                f"--config has no section {section!r}, which experiments.{command} needs; pass "
                f"--config=experiments/{example}.py or a file like it"
            )
    for section in mapping:
        if section not in sections:
            raise unknown("config section", section, sections)
