"""Export: write the shards in another trainer's format, with the reward as a file it can load.

Input:   the shards of materialize; the policy's tokenizer.
Output:  a folder: `train` and `validation` as Parquet or JSON lines (pipeline/export/formats.py), `rpt_reward.py`,
         `policy.json`, `export.json` (provenance), `README.md` (how to use it); with a gate, `gate.json` and
         `rpt_gate.py`. The folder appears complete or not at all.
Command: rpt export verl|trl|openrlhf|nemo-rl|jsonl data_manifests/<name>.yaml --out FOLDER
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.errors import UserError
from pipeline.config.manifest import MaterializeConfig
from pipeline.config.task import TaskConfig
from pipeline.core.artifact import InputFile, Record, content_hash
from pipeline.core.model_files import TOKENIZER_FILES, resolve_model
from pipeline.core.parquet import open_parquet, reading
from pipeline.core.progress import log
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.corpus.documents import CORPUS
from pipeline.export.formats import COLUMNS, FORMATS, ROWS, Example, Format
from pipeline.export.gate_files import APPLIES, GATE_FILE, gate_code
from pipeline.export.policy import policy_json
from pipeline.export.reward_bundle import reward_file
from pipeline.export.reward_callback import POLICY_FILE
from pipeline.grpo.rollout.chat_template import ChatTemplate
from pipeline.grpo.rollout.thinking_choice import thinking_of
from pipeline.selection.where import filter_rows, row_filter
from pipeline.shards.reader import SITE_COLUMNS, columns_of
from pipeline.shards.schema import SHARDS, SPLITS
from pipeline.task.templates import template_of
from pipeline.task.thinking import Thinking

REWARD_FILE = "rpt_reward.py"
TEXT_ONLY = ("verl", "openrlhf")
"""Formats whose trainers call the reward themselves and give it the text of a response only."""
_FORMS = {
    "tags": "The prediction is read from the last box after `{2}` (`task.thinking: tags`).",
    "free": "The prediction is read from the last box of the response (`task.thinking: free`).",
    "none": "The policy answers without thinking (`task.thinking: none`): switch thinking off in the chat template.",
}
"""What the README says of each form of responses."""
_GATE_USE = f"""
`{GATE_FILE}` says where the policy should think, by what is known before a thought; `{APPLIES}` applies it:
`gate_of(text).thinks(Known(entropy, logprob, margin, context_tokens, guess, context_end))`.
"""
"""What the README says of a gate."""


def export(
    name: str,
    shards: Record,
    *,
    format: str,
    task: TaskConfig,
    out: Path,
    policy: MaterializeConfig,
    where: str = "true",
    gate: str | None = None,
) -> dict[str, int]:
    """Write the shards as `format` into `out`.

    Args:
        name: name of the manifest.
        shards: record of `materialize`.
        format: one of `FORMATS`.
        task: the prompt template around each context, how the policy thinks, and the beginning of its responses, which
            ends the prompts.
        out: a folder that is empty or does not exist.
        policy: names the policy's tokenizer.
        where: SQL condition over `columns_of` the shards.
        gate: text of a checked gate, which the export carries.

    Returns:
        Rows by split. Contexts that literally contain an added token of the policy are left out: other trainers parse
        it as that token where `rpt train` reads text, so their prompt would differ.

    Raises:
        UserError: `out` is not empty, no site matches, metadata has the name of one of the format's columns, the
            shards were made with another tokenizer, the prompt template is refused, or tokens have a price and the
            trainer cannot count them.
        IntegrityError: a shard was changed.
    """
    _check_price(task, format)
    kind, text = FORMATS[format], template_of(task.template, task.thinking)
    tokenizer = _tokenizer_of(shards, policy)
    columns = columns_of(shards.files("train"))
    of_documents = [field for field in pq.read_schema(shards.files("train")[0].path) if field.name not in SHARDS.names]
    kind.check([field.name for field in of_documents])
    rule = row_filter(where, columns, "--where")
    as_text, form = _AsText(tokenizer), _thinking_of(task, tokenizer, policy)
    around = (text.before, text.after + form.prefill)
    with whole_folder(out) as folder:
        rows = {
            split: _write(
                kind, folder, split, examples(name, shards, split, around, list(columns), rule, as_text), of_documents
            )
            for split in SPLITS
        }
        if not rows["train"]:
            raise UserError("no training site to export", where=where, hint="widen --where")
        texts = {
            REWARD_FILE: reward_file(form, task.token_price),
            POLICY_FILE: policy_json(tokenizer, policy),
            **({} if gate is None else {GATE_FILE: gate, APPLIES: gate_code()}),
            "README.md": _readme(name, format, out, form, task.token_price, gate is not None),
        }
        for file, content in texts.items():
            (folder / file).write_text(content, encoding="utf-8")
        about = {
            "manifest": name,
            "format": format,
            "rows": rows,
            "dropped": {"added_token_in_context": as_text.dropped},
            "where": where,
            "template": {"name": text.name, "version": text.version},
            "thinking": form._asdict(),
            "token_price": task.token_price,
            "shards": {"fingerprint": shards.fingerprint, "content": shards.content},
            "policy_tokenizer": tokenizer.digest,
            "files": {file.name: content_hash(file) for file in sorted(folder.iterdir())},
        }
        (folder / "export.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    counts = ", ".join(f"{split} {count:,}" for split, count in rows.items())
    if as_text.dropped:
        counts += f", dropped.added_token_in_context {as_text.dropped:,}"
    log(f"export       {format}: {counts}  {out}")
    return rows


def _tokenizer_of(shards: Record, policy: MaterializeConfig) -> CorpusTokenizer:
    """Return the policy's tokenizer, with which the shards must have been made."""
    tokenizer = CorpusTokenizer.load(policy.policy_tokenizer, policy.policy_tokenizer_revision)
    if tokenizer.digest != shards.inputs["policy_tokenizer"]:
        raise UserError(
            "the shards were made with another tokenizer", where=policy.policy_tokenizer, hint="run `rpt data` again"
        )
    return tokenizer


def _thinking_of(task: TaskConfig, tokenizer: CorpusTokenizer, policy: MaterializeConfig) -> Thinking:
    """Return how the policy that the shards were made for thinks."""
    folder = resolve_model(policy.policy_tokenizer, policy.policy_tokenizer_revision, files=TOKENIZER_FILES)
    return thinking_of(task, ChatTemplate.of(folder if folder.is_dir() else folder.parent), tokenizer)


class _AsText:
    """Accepts the contexts that other trainers read as plain text, and counts the others."""

    def __init__(self, tokenizer: CorpusTokenizer) -> None:
        self._tokenizer, self.dropped = tokenizer, 0

    def __call__(self, context: bytes) -> bool:
        plain = not self._tokenizer.holds_added_token(context.decode())
        self.dropped += not plain
        return plain


def examples(
    name: str,
    shards: Record,
    split: str,
    around: tuple[str, str],
    columns: list[str],
    rule: pl.Expr,
    accepts: Callable[[bytes], bool],
) -> Iterator[Example]:
    """Yield the split's sites that match the rule and whose context is accepted, in shard order.

    Memory holds `ROWS` of them at a time. `around` is the prompt before and after a context; `columns` are those which
    the rule may name.
    """
    index = itertools.count()
    for file in shards.files(split):
        for table in _batches(file, [*columns, *COLUMNS]):
            for row in filter_rows(pl.DataFrame(pl.from_arrow(table)), rule, "`--where`").iter_rows(named=True):
                if not accepts(row["context"]):
                    continue
                source = "/".join(filter(None, ("rpt", name, row.get(CORPUS))))
                metadata = [column for column in columns if column not in SITE_COLUMNS]
                yield Example.of(row, next(index), source, *around, metadata)


def _batches(file: InputFile, columns: list[str]) -> Iterator[pa.Table]:
    path = file.verified()
    with reading(path), open_parquet(path) as table:
        for batch in table.iter_batches(batch_size=ROWS, columns=list(dict.fromkeys(columns))):
            yield pa.Table.from_batches([batch])


def _write(kind: Format, folder: Path, split: str, rows: Iterator[Example], of_documents: Sequence[pa.Field]) -> int:
    """Write one split's file, unless it has no rows, and return the number of rows."""
    first = next(rows, None)
    if first is None:
        return 0
    return kind.write(folder / f"{split}.{kind.suffix}", itertools.chain([first], rows), of_documents)


def _check_price(task: TaskConfig, format: str) -> None:
    if task.token_price and format in TEXT_ONLY:
        raise UserError(
            f"{format} passes text to the reward, whose tokens cannot be counted",
            where=f"task.token_price: {task.token_price}",
            hint="export to trl or jsonl, or without a price",
        )


def _readme(name: str, format: str, out: Path, form: Thinking, price: float, has_gate: bool) -> str:
    asked = _FORMS[form.mode].format(*form)
    if price:
        asked += f" A right answer of n tokens earns 1 / (1 + {price} n)."
    if form.prefill:
        asked += (
            f" Prompts end with `{form.prefill}`, which the reward reads as the response's beginning.\n"
            "A trainer that puts a chat template around them closes the user's message after it."
        )
    use = FORMATS[format].use.replace("{folder}", str(out))
    return (
        f"# Next-token sites of `{name}` for {format}\n\n"
        "Each row asks for the next token of a text; `rpt_reward.py` rewards an answer with 1 if it is a prefix of\n"
        "the true continuation that ends where one of its tokens ends (arXiv 2506.08007, Eq. 3), else with 0.\n"
        f"`export.json` says which shards the rows come from.\n\n{asked}\n\n{use}\n{_GATE_USE if has_gate else ''}"
    )


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `out`, which becomes `out` when the block ends without an error.

    Raises:
        UserError: `out` is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("the output folder is not empty", where=out, hint="remove it, or choose another --out")
    scratch = out.with_name(f".{out.name}.{uuid.uuid4().hex[:12]}")
    scratch.mkdir(parents=True)
    try:
        yield scratch
        os.replace(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
