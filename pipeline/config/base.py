"""What every configuration model shares: frozen, unknown keys refused, an identity of what decides the output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Config(BaseModel):
    """Base of every configuration model: frozen, unknown keys refused, and numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    locations: ClassVar[frozenset[str]] = frozenset()
    """Fields that say where something lies. Its content is fingerprinted instead."""

    execution: ClassVar[frozenset[str]] = frozenset()
    """Fields that change memory and speed but not the meaning of the output: recorded, and part of no identity."""

    def identity(self) -> dict[str, Any]:
        """The fields that decide the output, as JSON values: at no depth `locations` or `execution`."""
        left_out = self.locations | self.execution
        tree = self.model_dump(mode="json", exclude=set(left_out))
        for name, value in self:
            if isinstance(value, Config) and name not in left_out:
                tree[name] = value.identity()
            elif isinstance(value, tuple) and value and isinstance(value[0], Config) and name not in left_out:
                tree[name] = [part.identity() for part in value]
        return tree

    def execution_settings(self) -> dict[str, Any]:
        """The fields of `execution`, at any depth, as JSON values."""
        tree = self.model_dump(mode="json", include=set(self.execution))
        parts = {name: value.execution_settings() for name, value in self if isinstance(value, Config)}
        return tree | {name: settings for name, settings in parts.items() if settings}


Expression = Annotated[str, BeforeValidator(lambda value: str(value).lower() if isinstance(value, bool) else value)]
"""SQL over the columns of a row. YAML reads a bare `true` as a boolean; it is meant as SQL."""


def canonical_json(value: Any) -> str:
    """One spelling for equal values: sorted keys, no spaces. Models are dumped first.

    Example:
        >>> canonical_json({"b": 1, "a": [1.0, None]})
        '{"a":[1.0,null],"b":1}'
    """
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Field-by-field difference of two dumped configurations, as lines a person can read.

    Example:
        >>> differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2})
        ['a.b: 1 → 3']
    """
    lines: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before!r} → {after!r}")
    return lines
