"""Values of Arrow columns as Python values, or as text where no Python value is exact.

`to_pylist` is not enough: single-precision numbers get digits that are not in the data, nanoseconds need
pandas, and one date after the year 9999 or one string that is not UTF-8 fails the whole column.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.corpus.quarantine import Unusable


class Broken(NamedTuple):
    """A value that makes its row unusable, and why."""

    value: Any
    why: Unusable


def column_values(column: pa.Array) -> list[Any]:
    """Return the values of a column; top-level strings as bytes, because Parquet does not guarantee UTF-8.

    Example:
        >>> column_values(pa.array([0.1, None], pa.float32()))
        [0.1, None]
        >>> column_values(pa.array([10**7], pa.int32()).view(pa.date32()))
        ['29349-01-26']
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if _is_string(column.type):
        column = column.cast(pa.large_binary())
    if not _has_nanoseconds(column.type):  # for nanoseconds `to_pylist` depends on whether pandas is installed
        try:
            return _shortest(column)
        except (OverflowError, ValueError, pa.ArrowException):
            pass  # one value out of range, or a type without such a cast: convert value by value
    return [_value(scalar) for scalar in column]


def _shortest(column: pa.Array) -> list[Any]:
    """Return `to_pylist` with single-precision numbers as the shortest decimals that round to them, and NaN as None.

    Raises:
        pa.ArrowException: Arrow cannot convert this type.
    """
    kind = column.type
    if _holds(kind, pa.types.is_float32):
        column = column.cast(_without_singles(kind, pa.string())).cast(_without_singles(kind, pa.float64()))
    if _holds(column.type, lambda part: pa.types.is_float32(part) or pa.types.is_float16(part)):
        raise pa.ArrowNotImplementedError("neither inside maps nor of half precision")
    values: list[Any] = column.to_pylist()
    return [None if value != value else value for value in values] if pa.types.is_floating(kind) else values


def _without_singles(kind: pa.DataType, other: pa.DataType) -> pa.DataType:
    """Return a type with `other` in place of single precision, also inside lists and structures."""
    if pa.types.is_float32(kind):
        return other
    if pa.types.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        return pa.struct([field.with_type(_without_singles(field.type, other)) for field in fields])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        list_of = pa.list_ if pa.types.is_list(kind) else pa.large_list
        return list_of(kind.value_field.with_type(_without_singles(kind.value_type, other)))
    return kind


def _value(scalar: pa.Scalar) -> Any:
    broken: list[Unusable] = []
    value = _python(scalar, broken)
    return Broken(value, broken[0]) if broken else value


def _python(scalar: pa.Scalar, broken: list[Unusable]) -> Any:
    """Return the value of a scalar of any type; text that is not UTF-8 stays bytes and is appended to `broken`."""
    if not scalar.is_valid:
        return None
    kind = scalar.type
    if isinstance(scalar, pa.MapScalar):
        return [(_python(pair["key"], broken), _python(pair["value"], broken)) for pair in scalar.values]
    if isinstance(scalar, pa.StructScalar):
        return {name: _python(value, broken) for name, value in scalar.items()}
    if isinstance(scalar, (pa.ListScalar, pa.LargeListScalar, pa.FixedSizeListScalar)):
        return [_python(value, broken) for value in scalar.values]
    if isinstance(scalar, (pa.DictionaryScalar, pa.ExtensionScalar)):
        return _python(scalar.value, broken)
    if _is_string(kind):
        raw = scalar.as_buffer().to_pybytes()
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            broken.append(Unusable("not_utf8", str(error)))
            return raw
    if pa.types.is_float32(kind) or pa.types.is_float16(kind):
        return float(str((np.float32 if pa.types.is_float32(kind) else np.float16)(scalar.as_py())))
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        return _time(scalar)
    return scalar.as_py()


def _time(scalar: pa.Scalar) -> Any:
    """Return a date, time or duration as Python's, or as text if Python's lacks the range or the nanoseconds."""
    kind, value = scalar.type, scalar.value
    unit = getattr(kind, "unit", "D" if kind == pa.date32() else "ms")
    below_us = value % 1000 if unit == "ns" else 0
    try:
        if unit != "ns":
            return scalar.as_py()
        exact = pa.array([value // 1000], pa.int64()).view(_in_microseconds(kind))[0].as_py()
    except (OverflowError, ValueError):
        if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
            zone = "+00:00" if getattr(kind, "tz", None) else ""
            return str(np.array(value, f"datetime64[{unit}]")).replace("T", " ") + zone
        return f"{value} {unit}"
    return _with_nanoseconds(exact, below_us) if below_us else exact


def _in_microseconds(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    return pa.time64("us") if pa.types.is_time(kind) else pa.duration("us")


def _with_nanoseconds(exact: Any, nanoseconds: int) -> str:
    """Return `exact` as text, with nine digits after the second."""
    if isinstance(exact, timedelta):
        text = str(exact) if exact.microseconds else f"{exact}.000000"
        return f"{text}{nanoseconds:03d}"
    text = exact.isoformat(*([" "] if hasattr(exact, "date") else []), timespec="microseconds")
    zone = len(text) - (len(text.rpartition(".")[2]) - 6)
    return f"{text[:zone]}{nanoseconds:03d}{text[zone:]}"


def _is_string(kind: pa.DataType) -> bool:
    return any(is_it(kind) for is_it in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


@lru_cache(256)
def _has_nanoseconds(kind: pa.DataType) -> bool:
    return _holds(kind, lambda part: getattr(part, "unit", None) == "ns")


def _holds(kind: pa.DataType, what: Callable[[pa.DataType], bool]) -> bool:
    """Return whether the predicate `what` holds for a type or for one inside it."""
    inside = [kind.field(i).type for i in range(kind.num_fields)]
    if pa.types.is_dictionary(kind):
        inside.append(kind.value_type)
    return bool(what(kind)) or any(_holds(part, what) for part in inside)
