"""The flag --config=FILE.py or --config=FILE.py:VARIANT, and the flags that override its fields.

A config file is Python code with a function `get_config`, called with the variant if one is given.
Each field of the config that it returns becomes a flag: --config.train.num_steps=10.
"""

import ast
import difflib
import importlib.machinery
import importlib.util
import inspect
import os
import pathlib
import re
import sys
import traceback
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from ddpm_jax.errors import UserError

flags.disclaim_key_flags()  # --help of a main lists --config among the main's own flags


def define(help_string: str, flag_values: flags.FlagValues = flags.FLAGS) -> flags.FlagHolder:
    """Define --config, which must be given; the holder's value is a locked ConfigDict."""
    holder = flags.DEFINE_flag(_ConfigFlag(help_string, flag_values), flag_values)
    flags.register_validator(
        "config",
        lambda config: config is not None,
        "name a config file, such as --config=experiments/digits.py",
        flag_values,
    )
    return holder


def default_workdir() -> str:
    """Return runs/NAME, where NAME is that of the config file."""
    return os.path.join("runs", flags.FLAGS["config"].path.stem)


def load(argument: str) -> ConfigDict:
    """Return what get_config() of a file returns.

    Args:
      argument: FILE.py, or FILE.py:VARIANT.

    Raises:
      UserError: there is no such file, or it contains a mistake; the message names the line.
    """
    name, colon, variant = argument.partition(":")
    path, arguments = pathlib.Path(name), [variant] if colon else []
    if not path.is_file():
        files = [file.name for file in path.parent.glob("*.py")]
        nearest = difflib.get_close_matches(path.name, files, n=1)
        hint = f"; did you mean {path.parent / nearest[0]}?" if nearest else ""
        raise UserError(f"--config={argument}: there is no file {name!r}{hint}")
    try:
        loader = importlib.machinery.SourceFileLoader("_config_file", str(path))
        spec = importlib.util.spec_from_file_location(loader.name, path, loader=loader)
        module = importlib.util.module_from_spec(spec)
        sys.modules[loader.name] = module  # where the dataclasses of a file look for their module
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


def explain(
    error: flags.UnrecognizedFlagError, flag_values: flags.FlagValues = flags.FLAGS
) -> Exception:
    """Return what is wrong with an unknown flag; of a config key, name the nearest right one."""
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
    """--config: loads the file and defines a flag for each field."""

    def __init__(self, help_string: str, flag_values: flags.FlagValues):
        self._flag_values = flag_values
        super().__init__(flags.ArgumentParser(), None, "config", None, help_string)

    def parse(self, argument: str) -> None:
        if self.present:
            raise UserError(f"--config is given twice, the second time as {argument}")
        self.path = pathlib.Path(argument.partition(":")[0])
        self.value = load(argument)
        self.present += 1
        self._define_fields("config", self.value)

    def _define_fields(self, prefix: str, config: ConfigDict) -> None:
        for field in config:
            name, kind = f"{prefix}.{field}", config.get_type(field)
            if kind is ConfigDict:
                self._define_fields(name, config[field])
            elif kind in _PARSERS:
                flag = _FieldFlag(name, config, field, kind)
                flags.DEFINE_flag(flag, self._flag_values, module_name=__name__)


class _FieldFlag(flags.Flag):
    """--config.SECTION.FIELD: sets this field of the config."""

    def __init__(self, name: str, config: ConfigDict, field: str, kind: type):
        super().__init__(
            _PARSERS[kind],
            None,
            name,
            None,
            f"Overrides {name}.",
            boolean=kind is bool,
            allow_override=True,  # a command line that is parsed again
        )
        self._config, self._field, self._kind = config, field, kind

    def parse(self, argument: str) -> None:
        try:
            value = self.parser.parse(argument)
        except (TypeError, ValueError) as error:
            kind = _KINDS[self._kind]
            raise UserError(f"--{self.name} must be {kind}, found {argument!r}") from error
        if self._kind is tuple and self.present:
            value = self.value + value
        self._config[self._field] = self.value = value
        self.present += 1


class _TupleParser(flags.ArgumentParser):
    """Parse (1, 2), 1,2 and [1, 2] as tuples, and anything else as a tuple of one."""

    def parse(self, argument: str) -> tuple:
        value = _literal(argument)
        return tuple(value) if isinstance(value, (tuple, list)) else (value,)


class _LiteralParser(flags.ArgumentParser):
    """Parse numbers, tuples and the like; anything else is a string."""

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
    """Return FILE, line N: what is wrong; the line. The file is `path` or one beside it."""
    directory, message = path.resolve().parent, _message(error)
    filename, number, line = str(path), None, None
    if isinstance(error, SyntaxError) and error.filename:
        filename, number, line, message = error.filename, error.lineno, error.text, error.msg
    else:
        for frame in traceback.extract_tb(error.__traceback__)[1:]:  # the first is ours
            file = pathlib.Path(frame.filename).resolve()
            if file.parent == directory:
                filename, number, line = frame.filename, frame.lineno, frame.line
    if pathlib.Path(filename).is_relative_to(pathlib.Path.cwd()):
        filename = os.path.relpath(filename)
    where = filename if number is None else f"{filename}, line {number}"
    quoted = f"; the line is: {line.strip()}" if line and line.strip() else ""
    return f"{where}: {type(error).__name__}: {message}{quoted}"


def _message(error: Exception) -> str:
    """Return the error's message; ConfigDict's of a missing field quotes all its other fields."""
    message = str(error)
    if found := re.search(r'Did you mean "(.+?)" instead of "(.+?)"', message):
        return f"the config has no field {found[2]!r}, did you mean {found[1]!r}?"
    if found := re.search(r'Key "(.+?)" does not exist', message):
        return f"the config has no field {found[1]!r}"
    return message
