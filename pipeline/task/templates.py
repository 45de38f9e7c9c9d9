"""Prompt templates: named or in a file, versioned texts with one slot for the context.

`v0` to `v6` follow the seven wordings in Table 10 of arXiv 2506.08007, in our own words. According to its Table 8, an
untrained model does worst with `v0`, which the paper nevertheless trains with, and best with `v6`. `brief` is for small
policies, `direct` for policies that answer without thinking. `question` and `math` are for questions instead of
contexts (`rpt finetune`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.errors import UserError
from pipeline.config.resources import is_path

SLOT = "{context}"
MAX_BYTES = 256 * 1024
"""Largest template file."""


@dataclass(frozen=True)
class Template:
    """A prompt with one `{context}`; all other braces are literal.

    Example:
        >>> brief = TEMPLATES["brief"]
        >>> brief.before, brief.after
        ('Complete the text: ', '')
    """

    name: str
    version: int | str
    """Incremented whenever `text` changes; of a file, the beginning of its sha256."""
    text: str

    def __post_init__(self) -> None:
        if self.text.count(SLOT) != 1:
            raise ValueError(
                f"template {self.name!r} must contain {SLOT} exactly once, not {self.text.count(SLOT)} times"
            )

    @property
    def before(self) -> str:
        """The text before the context."""
        return self.text.partition(SLOT)[0]

    @property
    def after(self) -> str:
        """The text after the context."""
        return self.text.partition(SLOT)[2]


_SPACES = (
    r"A token may begin with a space, as in \boxed{ para} or \boxed{ =}; keep it, and do not use \text{} in the box."
)

_V0 = rf"""Complete the text under "### Context" by predicting its next token.
Reason step by step about what may follow, then give the most probable token as your final answer in \boxed{{}}.
{_SPACES}

### Context
{SLOT}"""

_V1 = rf"""Complete the text between the fences by predicting its next token.
Reason step by step about what may follow, then give the most probable token as your final prediction in \boxed{{}}.
{_SPACES}

```
{SLOT}
```"""

_V2 = rf"""You are a helpful assistant who is good at predicting the next token of a text.
Complete the text between the fences by predicting its next token.
Reason step by step about what may follow, then give the most probable token as your final prediction in \boxed{{}}.
{_SPACES}

```
{SLOT}
```"""

_V3 = rf"""Predict the next token of the text between the fences.
Reason step by step: list several tokens that could come next, weigh them against each other, pick the most probable.
Give it as your final prediction in \boxed{{}}.
{_SPACES}

```
{SLOT}
```"""

_V4 = rf"""Complete the text between the fences by predicting its next token.
Reason step by step about what may follow, then give the most probable token as your final answer in \boxed{{}}.
{_SPACES}
Three examples of how an answer ends:
- the text goes on with " that": \boxed{{ that}}
- the text goes on with "7": \boxed{{7}}
- the text goes on with a colon and a line break: \boxed{{:
}}

```
{SLOT}
```"""

_V5 = rf"""Complete the text between the fences by predicting its next token.
Reason step by step about what may follow, then give the most probable token as your final answer in \boxed{{}}.
{_SPACES}

```
{SLOT}
```"""

_V6 = rf"""Here is the beginning of a text:

```
{SLOT}
```

What is its next token? Reason step by step: first list several tokens that could come next, then weigh them against
each other and pick the most probable one. Give it as your final answer in \boxed{{}}.
{_SPACES}
Now please predict the next token."""

_DIRECT = rf"""Complete the text between the fences by predicting its next token.
Answer at once, without reasoning: give nothing but the most probable token, in \boxed{{}}.
{_SPACES}

```
{SLOT}
```

The next token is"""

TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        Template("v0", 1, _V0),
        Template("v1", 1, _V1),
        Template("v2", 1, _V2),
        Template("v3", 1, _V3),
        Template("v4", 1, _V4),
        Template("v5", 1, _V5),
        Template("v6", 1, _V6),
        Template("direct", 1, _DIRECT),
        Template("brief", 1, f"Complete the text: {SLOT}"),
        Template("question", 1, SLOT),
        Template("math", 1, f"{SLOT}\nReason step by step, then give the final answer in \\boxed{{}}."),
    )
}


def template_of(template: str, thinking: str) -> Template:
    """Return the template that a recipe's `task.template` and `task.thinking` mean, by its name or from its file.

    Raises:
        UserError: there is no such name or file, or the file is too large, not UTF-8, or has not one slot.
    """
    if template == "auto":
        return TEMPLATES["direct" if thinking == "none" else "v0"]
    return read_template(Path(template)) if is_path(template) else template_named(template)


def template_named(name: str) -> Template:
    """Return the template with a name.

    Raises:
        UserError: there is none; the message lists the known names.
    """
    if name not in TEMPLATES:
        hint = f"known: auto, {', '.join(TEMPLATES)}; a file's path has a dot or a slash"
        raise UserError(f"no prompt template `{name}`", where="task.template", hint=hint)
    return TEMPLATES[name]


def read_template(path: Path) -> Template:
    """Read a template from a UTF-8 text file; one line break at its end is the editor's and is left out.

    Raises:
        UserError: there is no such file, it is too large or not UTF-8, or has not one slot.
    """
    if not path.is_file():
        raise UserError(
            "no such prompt template", where=path, hint="`task.template` is relative to the recipe's folder"
        )
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UserError(f"a prompt template of more than {MAX_BYTES // 1024} KiB", where=path, hint="shorten it")
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UserError("a prompt template that is not UTF-8", where=path, hint="save it as UTF-8") from error
    if (count := text.count(SLOT)) != 1:
        hint = "write it where the context stands; all other braces are plain text"
        raise UserError(f"a prompt template needs {SLOT} once, but has it {count} times", where=path, hint=hint)
    return Template(path.name, hashlib.sha256(data).hexdigest()[:12], text)
