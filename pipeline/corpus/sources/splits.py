"""Splits and configurations of a source: which split a file belongs to, and which files are read.

A test, validation or development split is not read unless it is asked for, and two configurations (subsets, in the
words of the Hub) are never mixed. What a file belongs to is said by the data set's own metadata (`configs` in the
README of a data set on the Hub, `dataset_dict.json` of a folder that `save_to_disk` wrote), and else by its name, with
the words that `datasets` looks for: `train/0.parquet`, `gsm8k-test.jsonl`, `validation-00000-of-00001.parquet`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import yaml
from fsspec.utils import glob_translate

from pipeline.config.errors import UserError

WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words in names that stand for a split."""

EVERY = "all"
"""In `corpus.splits`: read every split."""

EVERY_CONFIGURATION = "*"
"""As `corpus.configuration`: read all configurations together."""

_KIND = {word: kind for kind, words in WORDS.items() for word in words}
_WORD = re.compile(rf"(?:^|[-._ 0-9])({'|'.join(sorted(_KIND, key=len, reverse=True))})(?=[-._ 0-9]|$)", re.IGNORECASE)
_FRONT = re.compile(r"\A\ufeff?---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Part:
    """The configuration and the split that a file belongs to; "" where nothing names one."""

    split: str = ""
    """The split as the data set names it (`train_sft`, `dev`)."""
    configurations: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """Return `train`, `validation`, `test`, or "" for a split that is none of them."""
        return kind_of_split(self.split)


@dataclass(frozen=True)
class Layout:
    """What the metadata of a data set say: the patterns of files by configuration and split."""

    configurations: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    """An empty split: the names of the files tell."""

    def part_of(self, name: str, names: Iterable[str] = ()) -> Part:
        """Return what a file belongs to.

        Args:
            name: the file's path below the root of the source.
            names: all files of the source. Prose whose name has such a word belongs to a split only where a training
                split of the same form exists: `notes/test.md` alone is about a test.
        """
        found = {
            configuration: split
            for configuration, splits in self.configurations.items()
            for split, patterns in splits.items()
            if any(_matches(pattern, name) for pattern in patterns)
        }
        named = next((split for split in found.values() if split), "") or split_in(name, names)
        return Part(named, tuple(found))


def kind_of_split(split: str) -> str:
    """Return what kind of split a name stands for.

    Example:
        >>> kind_of_split("train_sft"), kind_of_split("dev"), kind_of_split("challenge"), kind_of_split("contest")
        ('train', 'validation', '', '')
    """
    kinds = {_KIND[word.lower()] for word in _WORD.findall(split.replace("_", "-"))}
    return next((kind for kind in ("test", "validation", "train") if kind in kinds), "")


def split_in(name: str, names: Iterable[str] = ()) -> str:
    """Return the split that a file's path names, by its last part that names one; "" if none does.

    Example:
        >>> split_in("main/test-00000-of-00001.parquet"), split_in("dev/a.jsonl"), split_in("contest.jsonl")
        ('test', 'validation', '')
        >>> split_in("test.md"), split_in("test.md", ["test.md", "train.md"])
        ('', 'test')
    """
    path = PurePosixPath(name)
    for depth in range(len(path.parts) - 1, -1, -1):
        kind = kind_of_split(path.parts[depth])
        if kind and (not _is_prose(path) or kind == "train" or _has_training(path, depth, names)):
            return kind
    return ""


def _is_prose(path: PurePosixPath) -> bool:
    """Return whether a file's extension is not one that has records."""
    suffixes = {suffix.lower() for suffix in path.suffixes}
    return not suffixes & {".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv", ".arrow", ".feather", ".orc"}


def _has_training(path: PurePosixPath, depth: int, names: Iterable[str]) -> bool:
    """Return whether a training split stands beside a path whose part at `depth` names another split."""
    part = path.parts[depth]
    twins = {_WORD.sub(lambda found, word=word: found[0].replace(found[1], word), part) for word in WORDS["train"]}  # type: ignore[misc]
    head = path.parts[:depth]
    return any(
        parts[:depth] == head and len(parts) > depth and parts[depth] in twins
        for parts in (PurePosixPath(other).parts for other in names)
    )


def _matches(pattern: str, name: str) -> bool:
    return re.fullmatch(glob_translate(pattern), name) is not None


# ------------------------------------------------------------------------------------------------- metadata


def layout_of(readme: str, folders: str = "", infos: str = "") -> Layout:
    """Return the layout that a data set's metadata describe. Metadata that cannot be read describe nothing.

    Args:
        readme: text of its README, whose front matter may have `configs` and `dataset_info`.
        folders: text of its `dataset_dict.json`, which `save_to_disk` writes beside a folder per split.
        infos: text of its `dataset_infos.json`, an older form of `dataset_info`.
    """
    about = _front_matter(readme)
    if configurations := dict(filter(None, map(_configuration, _objects(about.get("configs"))))):
        return Layout(configurations)
    if splits := _json(folders).get("splits"):
        names = [str(split) for split in splits] if isinstance(splits, list) else []
        return Layout({"default": {split: [f"{split}/**"] for split in names}})
    declared = [str(info["config_name"]) for info in _objects(about.get("dataset_info")) if "config_name" in info]
    declared = declared or [str(name) for name in _json(infos)]
    return Layout({name: {"": [f"{name}/**"]} for name in declared}) if len(declared) > 1 else Layout()


def _front_matter(readme: str) -> dict[str, Any]:
    match = _FRONT.match(readme.replace("\r\n", "\n"))
    try:
        about = yaml.safe_load(match[1]) if match else {}
    except (yaml.YAMLError, ValueError, RecursionError):
        about = {}
    return about if isinstance(about, dict) else {}


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        value = {}
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[dict[str, Any]]:
    listed = value if isinstance(value, list) else [value]
    return [part for part in listed if isinstance(part, dict)]


def _configuration(about: Mapping[str, Any]) -> tuple[str, dict[str, list[str]]] | None:
    """Return name and patterns by split of an entry of `configs`; None if it names no files."""
    name, folder = str(about.get("config_name", "default")), str(about.get("data_dir") or "").strip("/")
    files = about.get("data_files")
    if files is None:
        return (name, {"": [f"{folder}/**" if folder else "**"]}) if folder or "config_name" in about else None
    return name, patterns_by_split(files, folder)


def patterns_by_split(files: Any, folder: str = "") -> dict[str, list[str]]:
    """Return patterns by split of `data_files` in any of its forms; without a split they are `train`.

    Example:
        >>> patterns_by_split([{"split": "test", "path": ["a-*", "./b"]}]), patterns_by_split("data/*.csv")
        ({'test': ['a-*', 'b']}, {'train': ['data/*.csv']})
    """
    found: dict[str, list[str]] = {}
    if isinstance(files, Mapping) and "split" not in files:
        entries = [(str(split), paths) for split, paths in files.items()]
    else:
        listed = files if isinstance(files, (list, tuple)) else [files]
        entries = [
            (str(f.get("split", "train")), f.get("path", ())) if isinstance(f, Mapping) else ("train", f)
            for f in listed
        ]
    for split, paths in entries:
        several = paths if isinstance(paths, (list, tuple)) else [paths]
        prefix = f"{folder}/" if folder else ""
        found.setdefault(split, []).extend(prefix + str(path).removeprefix("./") for path in several)
    return found


# --------------------------------------------------------------------------------------------------- choice


@dataclass(frozen=True)
class Choice:
    """The files of a source that are read, and those that are left out."""

    parts: Mapping[str, Part]
    """What each file that is read belongs to, by name."""
    held_out: frozenset[str]
    """Files of the split that is held out."""
    left_out: Mapping[str, int]
    """Number of files by the reason for which they are not read."""

    def lines(self) -> list[str]:
        """Return what is read and what is left out, as lines for the log; none where names say nothing."""
        splits = {part.split for part in self.parts.values()}
        configurations = {name for part in self.parts.values() for name in part.configurations}
        if not self.left_out and splits <= {""} and configurations <= {"default"}:
            return []
        said = [f"source       reads {_files(len(self.parts))}: {', '.join(self._groups())}"]
        if self.left_out:
            reasons = ", ".join(f"{count:,} of {reason}" for reason, count in sorted(self.left_out.items()))
            said.append(f"source       leaves out {_files(sum(self.left_out.values()))}: {reasons}")
        return said

    def _groups(self) -> list[str]:
        """Return the configurations and splits that are read, with their number of files."""
        groups: Counter[str] = Counter()
        for name, part in self.parts.items():
            of = [f"configuration {part.configurations[0]}"] if part.configurations not in ((), ("default",)) else []
            of += [f"split {part.split}" if part.split else "no split"]
            groups[" ".join(of) + (", held out" if name in self.held_out else "")] += 1
        if len(groups) == 1 and len(self.parts) <= 3:
            return [f"{next(iter(groups))} ({', '.join(self.parts)})"]
        return [f"{count:,} of {group}" for group, count in sorted(groups.items())]


class Keys(NamedTuple):
    """How a manifest says what is read, for messages."""

    configuration: str = "corpus.configuration: {}"
    splits: str = "corpus.splits: [{}]"
    files: str = "corpus.source"


OF_SOURCE = Keys()
OF_DATASET = Keys("corpus.dataset.name: {}", "corpus.dataset.split: {}", "corpus.dataset.data_files")


def choose(
    names: Sequence[str],
    layout: Layout,
    where: str,
    *,
    asked: str = "",
    splits: Sequence[str] = (),
    configuration: str | None = None,
    held_out: str | None = None,
    keys: Keys = OF_SOURCE,
) -> Choice:
    """Choose the files to read.

    Args:
        names: the files of the source with records, by path below its root.
        layout: what the metadata of the source say.
        where: the source, for messages.
        asked: the part of the source that names files; a split or configuration that it names is asked for.
        splits: the splits to read instead of training files and files without a split.
        configuration: the configuration to read.
        held_out: a split to read as well, for validation.
        keys: where the manifest says these.

    Raises:
        UserError: several configurations and none is asked for; a configuration or split does not exist; only splits
            that were not asked for.
    """
    parts = {name: layout.part_of(name, names) for name in names}
    left_out: Counter[str] = Counter()
    chosen = _of_configuration(parts, configuration, where, bool(asked), left_out, keys)
    there = sorted({part.split for part in chosen.values() if part.split})
    wanted = [split for split in splits if split != EVERY]
    for split in [*wanted, *([held_out] if held_out else [])]:
        if not any(is_of_split(part, split) for part in chosen.values()):
            hint = f"it has {', '.join(there)}" if there else "none of its files names a split"
            raise UserError(f"the source has no split `{split}`", where=where, hint=hint)
    out = frozenset(name for name, part in chosen.items() if held_out and is_of_split(part, held_out))
    read: dict[str, Part] = {}
    for name, part in chosen.items():
        by_default = part.kind in ("", "train") or part.kind in _kinds(asked)
        is_read = EVERY in splits or (any(is_of_split(part, split) for split in wanted) if wanted else by_default)
        if is_read or name in out:
            read[name] = part
        else:
            left_out[f"split {part.split}" if part.split else "no split"] += 1
    if not read.keys() - out:
        only = ", ".join(sorted({part.split for part in chosen.values()} - {""}))
        raise UserError(
            f"the source has only files of other splits ({only})" if chosen else "no file of the source is left",
            where=where,
            hint=f"name one in {keys.files}, or say which to read: `{keys.splits.format((there or [EVERY])[0])}`",
        )
    return Choice(read, out, left_out)


def _of_configuration(
    parts: Mapping[str, Part], configuration: str | None, where: str, asked: bool, left_out: Counter[str], keys: Keys
) -> dict[str, Part]:
    """Return the files of one configuration, and count the others in `left_out`."""
    there = sorted({name for part in parts.values() for name in part.configurations})
    if configuration == EVERY_CONFIGURATION:
        return dict(parts)
    if configuration is None:
        shared = set(there).intersection(*(part.configurations for part in parts.values())) if asked else set()
        if len(there) > 1 and not shared:
            shown = ", ".join(there[:20]) + (f" and {len(there) - 20} more" if len(there) > 20 else "")
            raise UserError(
                f"the data set has several configurations: {shown}",
                where=where,
                hint=f"say which to read: `{keys.configuration.format(there[0])}` (`'*'` reads all)",
            )
        if not there or shared or asked:
            return dict(parts)
        configuration = there[0]
    elif configuration not in there:
        hint = f"it has {', '.join(there)}" if there else "its metadata name no configuration"
        raise UserError(f"the data set has no configuration `{configuration}`", where=where, hint=hint)
    chosen = {name: part for name, part in parts.items() if configuration in part.configurations}
    for name in parts.keys() - chosen.keys():
        others = parts[name].configurations
        left_out[f"configuration {others[0]}" if others else "no configuration"] += 1
    return {name: Part(part.split, (configuration,)) for name, part in chosen.items()}


def is_of_split(part: Part, split: str) -> bool:
    """Return whether a file belongs to a split that is asked for, by the data set's name for it or by its kind."""
    return bool(part.split) and (part.split == split or part.kind == _KIND.get(split.lower()))


def _kinds(text: str) -> set[str]:
    """Return the kinds of all splits that a text names."""
    return {_KIND[word.lower()] for part in text.split("/") for word in _WORD.findall(part.replace("_", "-"))}


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count:,} files"
