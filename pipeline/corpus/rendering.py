"""Values of a record's columns as text: plain values, lists of strings, and chats in the forms that are common."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from typing import Any, NamedTuple, cast

from pipeline.config.errors import UserError
from pipeline.corpus.quarantine import Unusable


class Rule(NamedTuple):
    """How a column becomes text: `join` with a joiner, or `chat`."""

    name: str
    joiner: str = "\n"


_LINES = Rule("join")
"""The rule where the template names none."""

_JOIN = re.compile(r"""join(\(\s*(?P<quote>["'])(?P<joiner>.*)(?P=quote)\s*\))?""", re.DOTALL)


def parse_rule(text: str, template: str) -> Rule:
    r"""Return the rule that stands after `|` in a template.

    Raises:
        UserError: there is no such rule.

    Example:
        >>> parse_rule(r' join("\n\n")', ""), parse_rule(" chat", "").name
        (Rule(name='join', joiner='\n\n'), 'chat')
    """
    if text.strip() == "chat":
        return Rule("chat")
    match = _JOIN.fullmatch(text.strip())
    if match is None:
        hint = 'known: {column | join("\\n")}, {column | chat}'
        raise UserError(f"corpus.text: no rule is called `{text.strip()}`", where=repr(template), hint=hint)
    if match["joiner"] is None:
        return Rule("join")
    escapes = {"n": "\n", "t": "\t", "\\": "\\"}
    return Rule("join", re.sub(r"\\([nt\\])", lambda found: escapes[found[1]], match["joiner"]))


def outermost(column: str) -> str:
    """Return the column of the record that a dotted path begins with.

    Example:
        >>> outermost("messages.0.content"), outermost("paragraphs[].context"), outermost("text")
        ('messages', 'paragraphs', 'text')
    """
    return column.partition(".")[0].removesuffix("[]")


def value_of(column: str, values: Mapping[str, Any]) -> Any:
    """Return a column's value: by that exact name, or else by its dotted path through objects and lists.

    `name[]` takes every element of a list, so that the value is a list.

    Raises:
        Unusable: there is no such column.

    Example:
        >>> record = {"prompt": [{"role": "user", "content": "Why?"}], "a.b": 1}
        >>> value_of("prompt.0.content", record), value_of("prompt.-1.role", record), value_of("a.b", record)
        ('Why?', 'user', 1)
        >>> value_of("prompt[].content", record)
        ['Why?']
    """
    if column in values:
        return values[column]
    found: list[Any] = [values]
    for step in column.split("."):
        name = step.removesuffix("[]")
        found = [_inside(name, value, column) for value in found]
        if name != step:
            found = [part for value in found for part in _elements(value, column)]
    return found if "[]" in column else found[0]


def _inside(step: str, value: Any, column: str) -> Any:
    if isinstance(value, Mapping) and step in value:
        return value[step]
    if _is_list(value) and step.removeprefix("-").isdecimal() and -len(value) <= int(step) < len(value):
        return value[int(step)]
    raise Unusable("missing_column", f"no column `{column}`")


def _elements(value: Any, column: str) -> Sequence[Any]:
    if not _is_list(value):
        raise Unusable("wrong_type", f"`[]` of `{column}` is for a list, and not for a {type(value).__name__}")
    return cast(Sequence[Any], value)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def as_text(column: str, values: Mapping[str, Any], rule: Rule | None = None) -> str:
    r"""Return a column's value as text: strings and UTF-8 bytes unchanged, numbers, booleans and dates as they print.

    Strings of a list are joined by line feeds, or as `rule` says. A chat (see `chat_text`) becomes `role: content` per
    message, separated by blank lines.

    Raises:
        Unusable: the column is missing, null, not UTF-8, or of another type, such as an object.

    Example:
        >>> as_text("chat", {"chat": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]})
        'user: Why?\n\nassistant: So.'
        >>> as_text("lines", {"lines": ["a", "b"]}), as_text("lines", {"lines": ["a", "b"]}, Rule("join", " "))
        ('a\nb', 'a b')
    """
    value = value_of(column, values)
    if value is None:
        raise Unusable("null_column", f"`{column}` is null")
    text = chat_text(value) if rule and rule.name == "chat" else _plain(column, value, rule or _LINES)
    if text is None:
        kind = "chat" if rule and rule.name == "chat" else "text"
        raise Unusable("wrong_type", f"`{column}` is a {type(value).__name__}, not {kind}: {reprlib.repr(value)}")
    return text


def _plain(column: str, value: Any, rule: Rule) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise Unusable("not_utf8", f"`{column}`, byte {error.start}: {error.reason}") from error
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, Decimal, date, time)) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        return rule.joiner.join(value)
    return chat_text(value)


# ---------------------------------------------------------------------------------------------------- chats

_SHAREGPT = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
"""Roles of ShareGPT by the names that other forms give them."""


def chat_text(value: Any) -> str | None:
    r"""Return a chat as `role: content` per message, separated by blank lines, or None if it is no chat with text.

    Messages may have OpenAI's form (`role` and `content`) or ShareGPT's (`from` and `value`; `human` is `user`, `gpt`
    `assistant`). Content may be null, a string, or a list of parts: parts of text are joined, any other is named in
    brackets (`[image_url]`). A tool call is a line `name(arguments)` after the content.

    Example:
        >>> call = {"function": {"name": "add", "arguments": "3, 4"}}
        >>> print(chat_text([{"from": "human", "value": "3 + 4?"},
        ...     {"role": "assistant", "content": None, "tool_calls": [call]},
        ...     {"role": "tool", "content": [{"type": "text", "text": "7"}, {"type": "image_url"}]}]))
        user: 3 + 4?
        <BLANKLINE>
        assistant: add(3, 4)
        <BLANKLINE>
        tool: 7[image_url]
    """
    if not isinstance(value, list) or not any(map(_has_text, value)):
        return None
    messages = [_message(message) for message in value]
    return None if None in messages else "\n\n".join(filter(None, messages))


def is_message(value: Any) -> bool:
    """Return whether a value has the keys of a message of a chat."""
    return isinstance(value, Mapping) and any(keys <= value.keys() for keys in ({"role", "content"}, {"from", "value"}))


def _has_text(message: Any) -> bool:
    content = (message.get("content") or message.get("value")) if isinstance(message, Mapping) else None
    parts = content if isinstance(content, list) else [content]
    return any(isinstance(part, str) or (isinstance(part, Mapping) and "text" in part) for part in parts)


def _message(message: Any) -> str | None:
    if not isinstance(message, Mapping):
        return None
    if isinstance(role := message.get("role"), str) and "content" in message:
        content = message["content"]
    elif isinstance(role := message.get("from"), str) and "value" in message:
        role, content = _SHAREGPT.get(role, role), message["value"]
    else:
        return None
    text = _content(content)
    calls = [_call(call) for call in _calls(message)]
    if text is None or None in calls:
        return None
    body = "\n".join(filter(None, [text, *calls]))
    return f"{role}: {body}"


def _content(content: Any) -> str | None:
    """Return the content of a message, or None if it has no known form."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        return None
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif isinstance(part, Mapping) and isinstance(part.get("type"), str):
            texts.append(f"[{part['type']}]")
        else:
            return None
    return "".join(texts)


def _calls(message: Mapping[str, Any]) -> list[Any]:
    """Return the tool calls of a message, in today's form or in the older one of a single function."""
    single = message.get("function_call")
    return list(message.get("tool_calls") or ([{"function": single}] if single else []))


def _call(call: Any) -> str | None:
    about = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(about, Mapping) or not isinstance(about.get("name"), str):
        return None
    arguments = about.get("arguments")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
    return f"{about['name']}({text})"
