"""Settings: YAML and command line to dataclasses, and ``{class_path, init_args}`` blocks to components.

Precedence, weakest first: the dataclass's defaults, the recipe's own YAML, the YAML named by ``--config``,
the command line. Every key is checked before anything loads; a wrong one is an error that offers the nearest.
"""

import dataclasses
import difflib
import importlib
import inspect
import json
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from typing_extensions import is_protocol

from genrec_rl.errors import ConfigError

Block = Mapping[str, Any] | str | None
OWN_PACKAGES = ("genrec_rl", "reward_models")
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_PLAIN_TYPES = (bool, int, float, str, list, dict, tuple)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the known name closest to a wrong one, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def parse_recipe(
    schemas: Sequence[type], recipe_file: str | Path, argv: Sequence[str] | None = None
) -> tuple[Any, ...]:
    """Fill one dataclass per schema for a recipe.

    Args:
        schemas: dataclasses whose field names are the recipe's keys; no name may occur in two of them.
        recipe_file: the recipe's ``__file__``; the YAML of the same stem holds its defaults.
        argv: command-line words after the program's name; None reads ``sys.argv``.

    Raises:
        ConfigError: for an unknown key (the nearest is named), an unreadable file or a wrong type.
    """
    from transformers import HfArgumentParser

    words = list(sys.argv[1:] if argv is None else argv)
    config_file, words = _take_config(words)
    known = {name: hint for schema in schemas for name, hint in _field_types(schema).items()}
    values: dict[str, Any] = {}
    for path in [Path(recipe_file).with_suffix(".yaml"), config_file]:
        if path is not None:
            values |= _read_yaml(path, known)
    parser = HfArgumentParser(list(schemas))  # type: ignore[arg-type]
    parser.error = partial(_refuse, Path(recipe_file).name)
    for action in parser._actions:
        if action.dest in values:
            action.default = values[action.dest]
            action.required = False
    _refuse_unknown_flags(words, {flag for action in parser._actions for flag in action.option_strings})
    try:
        return parser.parse_args_into_dataclasses(words, look_for_args_file=False)
    except ConfigError:
        raise
    except ValueError as error:  # TRL's and transformers' own checks
        raise ConfigError(f"{Path(recipe_file).name}: {error}") from None


def _refuse(recipe: str, message: str) -> None:
    """Stand in for argparse's own way out, which prints the usage of every key before its message."""
    raise ConfigError(f"{recipe}: {message}; `--help` lists all keys")


def _field_types(schema: type) -> dict[str, Any]:
    """Types of a dataclass's settable fields, as written: HfArgumentParser overwrites those in ``Field.type``."""
    written = {name: hint for cls in reversed(schema.__mro__) for name, hint in inspect.get_annotations(cls).items()}
    return {f.name: written[f.name] for f in dataclasses.fields(schema) if f.init}


def _take_config(words: list[str]) -> tuple[Path | None, list[str]]:
    for i, word in enumerate(words):
        if word == "--config":
            if i + 1 == len(words):
                raise ConfigError("--config needs a file: --config my.yaml")
            return Path(words[i + 1]), words[:i] + words[i + 2 :]
        if word.startswith("--config="):
            return Path(word.removeprefix("--config=")), words[:i] + words[i + 1 :]
    return None, words


def _read_yaml(path: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name an existing YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({error})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds a {type(values).__name__}, expected `key: value` lines")
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{path}: unknown key '{key}'{nearest(str(key), known)}")
        values[key] = _coerce(value, known[key], f"{path}: {key}")
    return values


def _refuse_unknown_flags(words: Sequence[str], flags: set[str]) -> None:
    for word in words:
        flag = word.split("=", 1)[0]
        if flag.startswith("--") and flag not in flags:
            raise ConfigError(f"unknown option '{flag}'{nearest(flag, flags)}")


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """Turn PyYAML's ``1e-6`` (a string) into the float that was meant, and refuse other wrong types."""
    if isinstance(hint, str) or value is None:
        return value
    choices = _choices(hint)
    if choices and value not in choices:
        offered = ", ".join(map(str, choices))
        raise ConfigError(f"{where}: {value!r} is not one of {offered}{nearest(str(value), map(str, choices))}")
    accepted = _plain_types(hint)
    if not accepted or Any in accepted or isinstance(value, tuple(accepted)):
        if isinstance(value, bool) and accepted and bool not in accepted:
            raise ConfigError(f"{where}: {value!r} is a bool, expected {_names(accepted)}")
        return value
    if float in accepted and isinstance(value, int | str):
        try:
            return float(value)
        except ValueError:
            pass
    raise ConfigError(f"{where}: {value!r} is a {type(value).__name__}, expected {_names(accepted)}")


def _names(accepted: Sequence[type]) -> str:
    return " or ".join(t.__name__ for t in accepted)


def _choices(hint: Any) -> tuple[Any, ...]:
    """Values that a Literal, or an optional one, admits; () for other hints."""
    if typing.get_origin(hint) is typing.Literal:
        return typing.get_args(hint)
    members = [member for member in typing.get_args(hint) if member is not type(None)]
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return _choices(members[0]) if is_union and len(members) == 1 else ()


def _plain_types(hint: Any) -> list[type]:
    """Plain types that a hint admits, or [] when it admits anything that is not plain."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [_plain_types(member) for member in typing.get_args(hint) if member is not type(None)]
        return [t for member in members for t in member] if all(members) else []
    if typing.get_origin(hint) is typing.Literal:
        return list({type(v) for v in typing.get_args(hint)})
    origin = typing.get_origin(hint) or hint
    return [origin] if origin in _PLAIN_TYPES else []


def read_block(block: Block, *, key: str) -> Mapping[str, Any] | None:
    """Return a block as a mapping; the command line gives it as JSON, and ``none`` means None.

    Raises:
        ConfigError: when a string is neither.
    """
    if not isinstance(block, str):
        return block
    if block.lower() in ("none", "null", ""):
        return None
    try:
        values = json.loads(block)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{key}: '{block}' is no JSON ({error}); write {{\"name\": ...}} or none") from None
    if not isinstance(values, Mapping):
        raise ConfigError(f"{key}: '{block}' is a {type(values).__name__}, expected {{\"name\": ...}} or none")
    return values


def load_component(
    block: Mapping[str, Any],
    *,
    expected: type,
    key: str,
    factory: str | None = None,
    provided: Mapping[str, Any] | None = None,
    trusted_packages: Sequence[str] = (),
) -> Any:
    """Build the component that a ``{class_path, init_args}`` block names.

    Args:
        block: the block as read from YAML.
        expected: Protocol that the class must implement.
        key: name of the block, for messages.
        factory: classmethod to call in place of the constructor, such as ``from_pretrained``.
        provided: objects handed over by the recipe where the factory has a parameter of that name.
        trusted_packages: importable besides genrec_rl and reward_models.

    Raises:
        ConfigError: before anything loads, for a foreign class path or a wrong argument.
    """
    cls = component_class(block, expected=expected, key=key, trusted_packages=trusted_packages)
    build = getattr(cls, factory) if factory else cls
    arguments = check_init_args(build, block, key=key, provided=provided or {})
    return build(**arguments)


def component_class(
    block: Mapping[str, Any], *, expected: type, key: str, trusted_packages: Sequence[str] = ()
) -> type:
    """Import a block's class, from a trusted package only, and check that it implements the Protocol."""
    if not isinstance(block, Mapping) or not isinstance(block.get("class_path"), str):
        raise ConfigError(f"{key}: expected {{class_path: package.module.Class, init_args: {{...}}}}, got {block!r}")
    for name in block:
        if name not in ("class_path", "init_args"):
            raise ConfigError(f"{key}: unknown key '{name}'{nearest(name, ('class_path', 'init_args'))}")
    path = block["class_path"]
    module_name, _, class_name = path.rpartition(".")
    if module_name.split(".")[0] not in (*OWN_PACKAGES, *trusted_packages):
        allowed = ", ".join((*OWN_PACKAGES, *trusted_packages))
        raise ConfigError(
            f"{key}: class_path '{path}' is outside the trusted packages ({allowed}); "
            f"if you mean it, add `trusted_packages: [{path.split('.')[0]}]`"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{key}: class_path '{path}' cannot be imported ({error})") from None
    cls = getattr(module, class_name, None)
    if cls is None:
        classes = [n for n, v in vars(module).items() if inspect.isclass(v)]
        raise ConfigError(f"{key}: no '{class_name}' in {module_name}{nearest(class_name, classes)}")
    missing = [n for n in protocol_members(expected) if not hasattr(cls, n)]
    if not inspect.isclass(cls) or missing:
        lacks = ", ".join(missing) or "a class definition"
        raise ConfigError(f"{key}: {path} is not a {expected.__name__}; it lacks {lacks}")
    return cls


def protocol_members(protocol: type) -> list[str]:
    """Names that a class must have to implement a Protocol."""
    return sorted(n for n in vars(protocol) if not n.startswith("_"))


def _inherits_init_of_protocol(build: Callable[..., Any]) -> bool:
    """Whether a class takes no arguments although its signature, a Protocol's, says that it takes any."""
    if not inspect.isclass(build):
        return False
    return is_protocol(next(cls for cls in build.__mro__ if "__init__" in vars(cls)))


def check_init_args(
    build: Callable[..., Any], block: Mapping[str, Any], *, key: str, provided: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments for ``build``, checked by name and plain type against its signature."""
    init_args = block.get("init_args") or {}
    if not isinstance(init_args, Mapping):
        raise ConfigError(f"{key}: init_args {init_args!r} is no mapping; write {{name: value}}")
    init_args = dict(init_args)
    parameters = {} if _inherits_init_of_protocol(build) else inspect.signature(build).parameters
    hints = typing.get_type_hints(build if inspect.ismethod(build) else build.__init__)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name, value in init_args.items():
        if name not in parameters and not takes_any:
            raise ConfigError(f"{key}: {block['class_path']} has no argument '{name}'{nearest(name, parameters)}")
        init_args[name] = _coerce(value, hints.get(name), f"{key}.init_args.{name}")
    init_args |= {name: value for name, value in provided.items() if name in parameters}
    required = [n for n, p in parameters.items() if p.default is p.empty and p.kind not in _VARIADIC]
    lacking = [name for name in required if name not in init_args]
    if lacking:
        raise ConfigError(f"{key}: {block['class_path']} needs init_args {', '.join(lacking)}")
    return init_args
