"""One YAML file, one frozen dataclass, flags on top: code defaults < YAML < command line.

The dataclass is the only description of a configuration: its field docstrings are the help text,
its types are checked strictly (unknown keys are errors), and all errors are reported at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from core_mri.errors import ConfigError

T = TypeVar("T")
O = TypeVar("O")  # noqa: E741


def load_config(cls: type[T], source: str | Path | Mapping[str, object]) -> T:
    """Build the frozen dataclass `cls` from a YAML file or a mapping.

    Args:
        cls: A keyword-only dataclass; nested dataclasses, unions and literals are allowed.
        source: Path of a YAML file, or the mapping itself.

    Raises:
        ConfigError: CONFIG-02 when the file cannot be read as YAML, CONFIG-01 with every unknown
            key, missing key and wrong value, each with its path in the file and what is allowed.
    """
    name = "configuration"
    if not isinstance(source, Mapping):
        name = str(source)
        source = read_yaml(Path(source))
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    adapter = TypeAdapter(_strict(cls, ConfigDict(extra="forbid")))
    try:
        return adapter.validate_python(dict(source))
    except ValidationError as error:
        problems = "; ".join(_explain(cls, problem) for problem in error.errors())
        raise ConfigError("CONFIG-01", f"{name}: {problems}.") from None


def parse_command(
    cls: type[T],
    options: type[O],
    arguments: Sequence[str],
    *,
    program: str,
    folder: Path,
) -> tuple[T, O]:
    """Parse ``CONFIG [flags]``: the YAML file first, then flags that override single fields.

    Args:
        cls: Configuration dataclass.
        options: Dataclass of flags that are no part of the configuration, such as ``--resume``.
        arguments: The words after the verb. The first may be a path or the name of a packaged YAML
            file in `folder` without its suffix; without it, every required field must be a flag.
        program: How the command is called, for the help text.
        folder: Where packaged configurations lie.

    Raises:
        ConfigError: As `load_config`; CONFIG-02 also when CONFIG names nothing.
        SystemExit: From tyro: 0 after ``--help``, 2 with suggestions after a wrong flag.
    """
    import tyro

    rest = list(arguments)
    config_field: Any = dataclasses.field()
    if rest and not rest[0].startswith("-"):
        default = load_config(cls, find_config(rest.pop(0), folder))
        config_field = dataclasses.field(default=default)
    packaged = ", ".join(sorted(path.stem for path in folder.glob("*.yaml"))) or "none"
    command = dataclasses.make_dataclass(
        "Command",
        [
            ("options", Annotated[options, tyro.conf.arg(name="")]),
            ("config", Annotated[cls, tyro.conf.arg(name="")], config_field),
        ],
        kw_only=True,
    )
    parsed: Any = tyro.cli(
        command,
        prog=f"{program} [CONFIG]",
        args=rest,
        description=f"CONFIG: a YAML file, or a packaged one ({packaged}). Flags override it.",
        config=(tyro.conf.AvoidSubcommands,),
    )
    return parsed.config, parsed.options


def find_config(name: str, folder: Path) -> Path:
    """The YAML file that `name` means: a path, or a packaged file of `folder` without suffix.

    Raises:
        ConfigError: CONFIG-02 naming the packaged files and the nearest match.
    """
    for candidate in (Path(name), folder / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    packaged = sorted(path.stem for path in folder.glob("*.yaml"))
    raise ConfigError(
        "CONFIG-02",
        f"no configuration {name!r}: no such file, and packaged are {packaged}.",
        fix=_sentence(_suggest(name, packaged)),
    )


def to_mapping(config: object) -> dict[str, Any]:
    """Plain nested dictionaries, lists and scalars of a configuration, ready for YAML and JSON."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"expected an instance of a dataclass, got {config!r}")
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return plain


def save_config(config: object, path: Path) -> None:
    """Write the resolved configuration; `load_config` of the file gives an equal object."""
    import yaml

    path.write_text(yaml.safe_dump(to_mapping(config), sort_keys=False), encoding="utf-8")


def config_hash(config: object) -> str:
    """SHA-256 of the canonical JSON form."""
    canonical = json.dumps(to_mapping(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines ``key: old -> new`` for every value that differs between two plain configurations."""
    lines: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key, "absent"), new.get(key, "absent")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before} -> {after}")
    return lines


def read_yaml(path: Path) -> Mapping[str, object]:
    """The mapping that a YAML file holds.

    Raises:
        ConfigError: CONFIG-02 when it cannot be read as one.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("CONFIG-02", f"{path}: no such file.") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError("CONFIG-02", f"{path}: not readable as YAML: {error}.") from None
    if not isinstance(content, Mapping):
        raise ConfigError(
            "CONFIG-02",
            f"{path}: expected `key: value` lines, got {type(content).__name__}.",
        )
    return content


def _strict(cls: type[T], pydantic_config: Any) -> type[T]:
    """Forbid unknown keys in `cls` and in every dataclass below it."""
    from pydantic import with_config

    if "__pydantic_config__" not in vars(cls):
        with_config(pydantic_config)(cls)
    for hint in get_type_hints(cls).values():
        for part in _parts(hint):
            if dataclasses.is_dataclass(part) and isinstance(part, type):
                _strict(part, pydantic_config)
    return cls


def _parts(hint: Any) -> list[Any]:
    arguments = get_args(hint)
    return [hint] if not arguments else [p for a in arguments for p in _parts(a)]


def _explain(cls: type, problem: Any) -> str:
    """One clause for one pydantic error: where, what was got, what is allowed, what was meant."""
    location = ".".join(str(part) for part in problem["loc"]) or "top level"
    kind = problem["type"]
    if kind in {"unexpected_keyword_argument", "extra_forbidden"}:
        keys = _known_keys(cls, problem["loc"][:-1])
        hint = _suggest(str(problem["loc"][-1]), keys)
        return f"unknown key `{location}` (allowed: {', '.join(keys)}){'; ' + hint if hint else ''}"
    if kind in {"missing", "missing_argument"}:
        return f"missing key `{location}`"
    return f"`{location}` = {problem['input']!r}: {problem['msg']}"


def _known_keys(cls: type, location: Sequence[Any]) -> list[str]:
    current: Any = cls
    for part in location:
        hints = get_type_hints(current) if dataclasses.is_dataclass(current) else {}
        current = next(
            (p for p in _parts(hints.get(str(part))) if dataclasses.is_dataclass(p)),
            current,
        )
    return [f.name for f in dataclasses.fields(current)]


def _suggest(word: str, allowed: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
    return f"perhaps you meant {close[0]!r}" if close else ""


def _sentence(clause: str) -> str:
    return f"{clause[0].upper()}{clause[1:]}." if clause else ""
