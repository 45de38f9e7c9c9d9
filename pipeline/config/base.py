"""The base of every configuration model: frozen, unknown keys refused, with an identity for fingerprints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Config(BaseModel):
    """Base of every configuration model: frozen; refuses unknown keys and numbers that are not finite.

    The string under a field is its description, in the reference of the documentation and in the JSON Schemas.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    locations: ClassVar[frozenset[str]] = frozenset()
    """Fields that locate an input. The content of the input is fingerprinted instead."""

    execution: ClassVar[frozenset[str]] = frozenset()
    """Fields that change memory and speed but not the output: recorded, but not part of the identity."""

    added: ClassVar[frozenset[str]] = frozenset()
    """Fields that came later: while they have their default they are not part of the identity, so that a version that
    brings a new field does not make what was computed before it stale."""

    def identity(self) -> dict[str, Any]:
        """Return the fields that decide the output, as JSON values: no `locations` or `execution` at any depth."""
        left_out = self.locations | self.execution | {name for name in self.added if self._is_default(name)}
        tree = self.model_dump(mode="json", exclude=set(left_out))
        for name, value in self:
            if isinstance(value, Config) and name not in left_out:
                tree[name] = value.identity()
            elif isinstance(value, tuple) and value and isinstance(value[0], Config) and name not in left_out:
                tree[name] = [part.identity() for part in value]
        return tree

    def without_added(self) -> dict[str, Any]:
        """Return all fields as JSON values, without those of `added` that have their default."""
        return self.model_dump(mode="json", exclude={name for name in self.added if self._is_default(name)})

    def _is_default(self, name: str) -> bool:
        field = type(self).model_fields[name]
        return bool(getattr(self, name) == field.get_default(call_default_factory=True))

    def execution_settings(self) -> dict[str, Any]:
        """Return the fields of `execution`, at any depth, as JSON values."""
        tree = self.model_dump(mode="json", include=set(self.execution))
        parts = {name: value.execution_settings() for name, value in self if isinstance(value, Config)}
        return tree | {name: settings for name, settings in parts.items() if settings}


Expression = Annotated[str, BeforeValidator(lambda value: str(value).lower() if isinstance(value, bool) else value)]
"""A SQL expression over the columns of a row. YAML reads a bare `true` as a boolean; it becomes SQL again."""


def canonical_json(value: Any) -> str:
    """Return JSON that is the same for equal values: sorted keys, no spaces. Models are dumped first.

    Example:
        >>> canonical_json({"b": 1, "a": [1.0, None]})
        '{"a":[1.0,null],"b":1}'
    """
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the differences of two dumped configurations, one readable line per field.

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
