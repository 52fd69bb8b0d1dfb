"""Configuration from a recipe, a TOML file and the command line; the later wins.

The resolved result is saved with every run and checkpoint.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stflow_graph.config.records import (
    RECIPES,
    Config,
    GraphDenoiserConfig,
    TransformerDenoiserConfig,
)
from stflow_graph.errors import BadConfig, one_line, short_repr, unquoted
from stflow_graph.io.atomic import check_file

_MAX_TEXT = 65536  # characters of TOML; its parser takes quadratic time in the length of a key
_MAX_PROBLEMS = 3
_MAX_DEPTH, _MAX_BITS = 8, 1024
_DENOISERS = {"graph": GraphDenoiserConfig, "transformer": TransformerDenoiserConfig}


def load_config(
    file: str | Path | None = None, overrides: Mapping[str, Any] | None = None
) -> Config:
    """Build a configuration from the denoiser's recipe, a TOML file and overrides.

    Args:
        file: TOML with the sections of :class:`Config`, or None.
        overrides: dotted names to values (``{"train.lr": 1e-3}``); these win.

    Raises:
        BadInput: the file cannot be read.
        BadConfig: not TOML, an unknown name or a value out of range; the message lists both.
    """
    layers: dict[str, dict[str, Any]] = {}
    origin = "command line"
    if file is not None:
        origin = one_line(str(file), 500)
        layers = _parse_toml(check_file(file).read_bytes(), origin)
        for section, table in layers.items():
            if not isinstance(table, dict):
                name = one_line(section, 80)
                raise BadConfig(f"{origin}: {name} = {short_repr(table)}: expected a table")
    for name, value in (overrides or {}).items():
        section, _, key = name.partition(".")
        if section not in Config.model_fields or not key:
            sections = ", ".join(Config.model_fields)
            raise BadConfig(
                f"{one_line(name, 200)}: expected section.name=value with a section of {sections}"
            )
        layers.setdefault(section, {})[key] = value
    name = layers.get("denoiser", {}).get("name", "graph")
    recipe = RECIPES.get(name, {}) if isinstance(name, str) else {}
    merged = {
        section: {**recipe.get(section, {}), **layers.get(section, {})}
        for section in {*recipe, *layers}
    }
    merged.setdefault("data", {})
    if "denoiser" in merged:
        merged["denoiser"].setdefault("name", "graph")
    return parse_config(merged, origin)


def _parse_toml(content: bytes, origin: str) -> dict[str, Any]:
    if len(content) > _MAX_TEXT:
        raise BadConfig(f"{origin}: found {len(content):,} bytes, expected at most {_MAX_TEXT:,}")
    try:
        return tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # also an integer of 5,000 digits
        raise BadConfig(f"{origin}: not TOML: {short_repr(unquoted(str(error)))}") from None


def parse_config(values: Mapping[str, Any], origin: str | Path) -> Config:
    """Validate nested values as a :class:`Config`.

    Raises:
        BadConfig: names the wrong keys, the first three, with what was expected.
    """
    origin = one_line(str(origin), 500)
    if name := _oversized(values):
        raise BadConfig(f"{origin}: {one_line(name, 80)}: too deep, or too large a number")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        details = error.errors(include_url=False)
        problems = [_problem(one) for one in details[:_MAX_PROBLEMS]]
        if len(details) > _MAX_PROBLEMS:
            problems.append(f"and {len(details) - _MAX_PROBLEMS} more")
        raise BadConfig(f"{origin}: " + "; ".join(problems)) from None


def _oversized(values: object) -> str:
    """Return the name of a value that no field can have and no library can print, "" if none."""
    pending = [("", values, 0)]
    while pending:
        name, value, depth = pending.pop()
        is_large = isinstance(value, int) and value.bit_length() > _MAX_BITS
        if is_large or depth > _MAX_DEPTH:
            return name or "configuration"
        if isinstance(value, Mapping):
            pending += [(f"{name}.{_key(k)}".strip("."), v, depth + 1) for k, v in value.items()]
            pending += [(name, key, depth) for key in value if not isinstance(key, str)]
        elif isinstance(value, list | tuple):
            pending += [(name, v, depth + 1) for v in value]
    return ""


def _key(key: object) -> str:
    return key if isinstance(key, str) else type(key).__name__


def _problem(details: Any) -> str:
    place = [str(part) for part in details["loc"]]
    if not place:  # of the configuration as a whole
        return str(details.get("ctx", {}).get("error", details["msg"]))
    # the discriminated union puts the denoiser's name into the location
    kind = place.pop(1) if place[0] == "denoiser" and len(place) > 2 else ""
    name = one_line(".".join(place), 80)
    if details["type"] == "extra_forbidden":
        section: Any = Config if len(place) == 1 else Config.model_fields[place[0]].annotation
        known = _DENOISERS.get(kind, section).model_fields
        return f"unknown name {name}; known: {', '.join(known)}"
    if details["type"] == "missing":
        return f"{name} is needed"
    return f"{name} = {short_repr(details['input'])}: {one_line(details['msg'], 200)}"


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """Read ``a.b=value`` strings; values as TOML where they are, else as text.

    Raises:
        BadConfig: a string has no ``=``, or cannot be a value: too long, too deep or too large.
    """
    parsed: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise BadConfig(f"{short_repr(assignment)}: expected name=value")
        if len(assignment) > _MAX_TEXT:
            shown = short_repr(assignment)
            raise BadConfig(f"{shown}: expected at most {_MAX_TEXT:,} characters")
        try:
            parsed[name.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            parsed[name.strip()] = text
        except (ValueError, RecursionError):  # an integer of 5,000 digits, an array 1,000 deep
            raise BadConfig(f"{short_repr(assignment)}: too large or too deep a value") from None
    return parsed
