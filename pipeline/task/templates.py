"""Prompt templates: named, versioned texts with one slot for the context.

`v0` to `v6` follow the seven wordings in Table 10 of arXiv 2506.08007, in our own words. According to its Table 8, an
untrained model does worst with `v0`, which the paper nevertheless trains with, and best with `v6`. `brief` is for small
policies. `question` and `math` are for questions instead of contexts (`rpt finetune`).
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config.errors import UserError

SLOT = "{context}"


@dataclass(frozen=True)
class Template:
    """A prompt with one `{context}`; all other braces are literal.

    Example:
        >>> brief = TEMPLATES["brief"]
        >>> brief.before, brief.after
        ('Complete the text: ', '')
    """

    name: str
    version: int
    """Incremented whenever `text` changes, because a run identifies its template by `name` and `version`."""
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
        Template("brief", 1, f"Complete the text: {SLOT}"),
        Template("question", 1, SLOT),
        Template("math", 1, f"{SLOT}\nReason step by step, then give the final answer in \\boxed{{}}."),
    )
}


def template_named(name: str) -> Template:
    """Return the template with a name.

    Raises:
        UserError: there is none; the message lists the known names.
    """
    if name not in TEMPLATES:
        raise UserError(f"no prompt template `{name}`", where="task.template", hint=f"known: {', '.join(TEMPLATES)}")
    return TEMPLATES[name]
