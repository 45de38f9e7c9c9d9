"""A parser of XML that finds the elements at a path, with their columns and the offsets of their bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from xml.parsers import expat

from pipeline.corpus.quarantine import Unusable
from pipeline.corpus.readers.record_splitter import RECORD_LIMIT
from pipeline.corpus.readers.xml_layout import local_name


@dataclass
class Node:
    """An open element of a record."""

    name: str
    attributes: dict[str, str]
    children: dict[str, list[Any]] = field(default_factory=dict)
    text: list[str] = field(default_factory=list)
    """All text in it, that of its children included."""
    own: bool = False
    """Whether it has text outside of its children."""

    def value(self) -> Any:
        """Return the element as the value of a column."""
        if self.children and not self.own:
            inside = {name: values[0] if len(values) == 1 else values for name, values in self.children.items()}
            return {**self.attributes, **inside}
        text = "".join(self.text).strip()
        return self.attributes if self.attributes and not text else text

    def columns(self) -> dict[str, Any]:
        """Return the columns of the element as a record."""
        value = self.value()
        return value if isinstance(value, dict) else {**self.attributes, "text": value}


class Found(NamedTuple):
    """A record: the offsets of its first byte and of the one after its last, and its columns or why it has none."""

    start: int
    stop: int
    columns: dict[str, Any] | Unusable


class ElementParser:
    """The elements at a path, from blocks of bytes. All offsets are those of the file."""

    def __init__(self, path: Sequence[str], encoding: str | None, start: int = 0, before: bytes = b"") -> None:
        """Begin at an offset.

        Args:
            path: names of the elements around a record from the outermost on, and its own.
            encoding: that of the bytes; None where the file declares it.
            start: offset of the first byte that is fed.
            before: what is parsed as if it stood before that.
        """
        self.path, self.start = list(path), start
        self.open: list[str] = []
        """Names of the open elements, with their prefixes."""
        self.tags: tuple[str, ...] = ()
        """Those of the first record and of the elements around it."""
        self.first: int | None = None
        """Offset of the first record."""
        self.stop = start
        """End of the last record."""
        self.nested = False
        """Whether a record had an element of its own name in it."""
        self.declared = "utf-8"
        """Encoding that the file declares."""
        self._shift = start - len(before)
        self._nodes: list[Node] = []
        self._found: list[Found] = []
        self._begun = self._size = 0
        self._done: dict[str, Any] | Unusable | None = None  # of an element that ends where the next event begins
        self._inner = False  # whether the open record has an element of its own name in it
        self._unknown = ""  # a reference of the record to what is not in the file
        self._parser = expat.ParserCreate(encoding)
        self._parser.XmlDeclHandler = self._declare
        self._parser.StartElementHandler = self._begin
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text
        self._parser.CommentHandler = lambda _: self.close(self.place)
        self._parser.DefaultHandlerExpand = self._other
        self._parser.ProcessingInstructionHandler = lambda *_: self.close(self.place)
        if before:
            self._parser.Parse(before, False)

    @property
    def place(self) -> int:
        """Offset of the current event, or of an error."""
        return self._shift + self._parser.CurrentByteIndex

    @property
    def begun(self) -> int | None:
        """Offset of the record that has begun and not ended."""
        return self._begun if self._nodes or self._done is not None else None

    @property
    def between(self) -> bool:
        """Whether only the elements around a record are open."""
        return list(map(local_name, self.open)) == self.path[:-1]

    def feed(self, block: bytes) -> None:
        """Parse a block; an empty one ends the file.

        Raises:
            ExpatError: it is not well-formed. What ended before that place has been found.
        """
        self._parser.Parse(block, not block)
        if not block:
            self.close(self.place)

    def take(self) -> list[Found]:
        """Return the records that were found since the last call."""
        found, self._found = self._found, []
        return found

    def close(self, stop: int) -> None:
        """Take an offset as the end of the last record, if it has ended and its end is not known yet."""
        if self._done is not None:
            self._found.append(Found(self._begun, stop, self._done))
            self._done, self.stop = None, stop

    def _declare(self, _: str, encoding: str | None, __: int) -> None:
        self.declared = encoding or "utf-8"

    def _begin(self, name: str, attributes: dict[str, str]) -> None:
        self.close(self.place)
        between = not self._nodes and len(self.open) == len(self.path) - 1 and self.between
        self.open.append(name)
        if between and local_name(name) == self.path[-1]:
            self._begun, self._size, self._inner = self.place, 0, False
            if self.first is None:
                self.first, self.tags = self._begun, tuple(self.open)
        elif not self._nodes:
            return
        else:
            self._inner |= name == self.tags[-1]
        self._nodes.append(Node(local_name(name), {local_name(key): value for key, value in attributes.items()}))

    def _end(self, _: str) -> None:
        self.close(self.place)
        self.open.pop()
        if not self._nodes:
            return
        node = self._nodes.pop()
        if not self._nodes:
            missing = Unusable("not_xml", f"the file does not say what {self._unknown} is")
            self._done = missing if self._unknown else node.columns()
            self._unknown, self.nested = "", self.nested or self._inner
        elif self._size <= RECORD_LIMIT:  # a longer one goes to quarantine
            self._nodes[-1].children.setdefault(node.name, []).append(node.value())
            self._nodes[-1].text += node.text

    def _text(self, text: str) -> None:
        self.close(self.place)
        self._size += len(text)
        if self._nodes and self._size <= RECORD_LIMIT:
            self._nodes[-1].text.append(text)
            self._nodes[-1].own |= not text.isspace()

    def _other(self, text: str) -> None:
        self.close(self.place)
        if self._nodes and text.startswith("&"):
            self._unknown = text
