"""Formats of other trainers: the row of a site in each, and how rows are written.

verl: docs/preparation/prepare_data.rst of verl 0.9; TRL: "Dataset formats" of TRL 1.16; OpenRLHF: `--data.input_key`,
`--data.label_key` of OpenRLHF 0.11; NeMo-RL: `ResponseDataset` of NeMo-RL 0.5.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.config.errors import UserError
from pipeline.core.parquet import parquet_writer
from pipeline.export.reward_callback import ground_truth

ROWS = 512
"""Rows per row group, which are in memory at once: few, because contexts are long."""


@dataclass(frozen=True)
class Example:
    """A site with everything that the formats need."""

    index: int
    """Index of the site within its split."""
    source: str
    """`rpt/<manifest>`, or `rpt/<manifest>/<corpus>` if there are several sources."""
    prompt: str
    """The context in the prompt template, as one user message."""
    truth: str
    """The ground truth that a response is judged by (`reward_callback.ground_truth`)."""
    row: Mapping[str, Any]
    """The site's row of the shard."""
    metadata: Sequence[str] = ()
    """Names of the columns that are metadata of the document."""

    @classmethod
    def of(
        cls, row: Mapping[str, Any], index: int, source: str, before: str, after: str, metadata: Sequence[str] = ()
    ) -> Example:
        """Build from a row that has at least the columns `COLUMNS` and `metadata`."""
        truth = ground_truth(row["continuation"], row["token_lengths"])
        return cls(index, source, before + row["context"].decode() + after, truth, row, metadata)

    @property
    def about(self) -> dict[str, Any]:
        """Flat columns for curricula and lookups; `target` is decoded for display."""
        target = {"target": self.row["target"].decode(errors="replace")}
        return {name: self.row[name] for name in ABOUT} | target | {name: self.row[name] for name in self.metadata}


ABOUT = ("site_id", "doc_id", "position", "field", "entropy", "band")
COLUMNS = (*ABOUT, "split", "context", "target", "continuation", "token_lengths")

_ABOUT_FIELDS = [
    pa.field("site_id", pa.string()),
    pa.field("doc_id", pa.string()),
    pa.field("position", pa.int64()),
    pa.field("field", pa.string()),
    pa.field("entropy", pa.float32()),
    pa.field("band", pa.string()),
    pa.field("target", pa.string()),
]
_MESSAGES = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))
_REWARD_MODEL = pa.struct([pa.field("style", pa.string()), pa.field("ground_truth", pa.string())])

Schema = Callable[[Sequence[pa.Field]], pa.Schema]
"""Makes the Parquet schema of a format from the columns of metadata."""


def _verl_schema(metadata: Sequence[pa.Field]) -> pa.Schema:
    extra = [pa.field("split", pa.string()), pa.field("index", pa.int64()), *_ABOUT_FIELDS, *metadata]
    return pa.schema(
        [
            pa.field("data_source", pa.string()),
            pa.field("prompt", _MESSAGES),
            pa.field("ability", pa.string()),
            pa.field("reward_model", _REWARD_MODEL),
            pa.field("extra_info", pa.struct(extra)),
        ]
    )


def _trl_schema(metadata: Sequence[pa.Field]) -> pa.Schema:
    return pa.schema([pa.field("prompt", _MESSAGES), pa.field("ground_truth", pa.string()), *_ABOUT_FIELDS, *metadata])


_ENCODINGS = {"prompt.list.element.role": "DELTA_BYTE_ARRAY", "prompt.list.element.content": "DELTA_BYTE_ARRAY"}
"""Delta encodings, because neighbouring prompts share their beginnings, as in the shards."""


@dataclass(frozen=True)
class Format:
    """A trainer's format: how a row is made, and how to use the exported folder."""

    row: Callable[[Example], dict[str, Any]]
    """Makes the row of a site."""
    schema: Schema | None
    """Schema of the Parquet file for given metadata columns; None: JSON lines."""
    own: frozenset[str]
    """The format's own column names, which metadata must not use."""
    use: str
    """Instructions in Markdown, with `{folder}` for the exported folder."""

    @property
    def suffix(self) -> str:
        """The extension of the format's files."""
        return "jsonl" if self.schema is None else "parquet"

    def check(self, metadata: Iterable[str]) -> None:
        """Refuse metadata that has the name of one of the format's own columns.

        Raises:
            UserError: there is such a name; the message has it.
        """
        if clashes := sorted(self.own & set(metadata)):
            raise UserError(
                f"the format has its own column `{clashes[0]}`",
                where="select.metadata",
                hint=f"leave `{clashes[0]}` out of `select.metadata`, rename it in the corpus, or use another format",
            )

    def write(self, path: Path, examples: Iterable[Example], metadata: Sequence[pa.Field] = ()) -> int:
        """Stream examples with these columns of metadata to a file, and return their number."""
        rows, count = map(self.row, examples), 0
        if self.schema is None:
            with path.open("w", encoding="utf-8") as file:
                for count, row in enumerate(rows, 1):  # noqa: B007
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
            return count
        schema = self.schema(metadata)
        with parquet_writer(path, schema, encodings=_ENCODINGS) as writer:
            while buffer := list(islice(rows, ROWS)):
                writer.write_table(pa.Table.from_pylist(buffer, schema=schema), row_group_size=ROWS)
                count += len(buffer)
        return count


def _messages(example: Example) -> list[dict[str, str]]:
    return [{"role": "user", "content": example.prompt}]


def _verl(example: Example) -> dict[str, Any]:
    return {
        "data_source": example.source,
        "prompt": _messages(example),
        "ability": "next_token",
        "reward_model": {"style": "rule", "ground_truth": example.truth},
        "extra_info": {"split": example.row["split"], "index": example.index, **example.about},
    }


def _trl(example: Example) -> dict[str, Any]:
    return {"prompt": _messages(example), "ground_truth": example.truth, **example.about}


def _openrlhf(example: Example) -> dict[str, Any]:
    return {"input": example.prompt, "label": example.truth, "datasource": example.source, **example.about}


def _nemo_rl(example: Example) -> dict[str, Any]:
    return {"input": example.prompt, "output": example.truth, "task_name": example.source, **example.about}


def _jsonl(example: Example) -> dict[str, Any]:
    return {
        "prompt": example.prompt,
        "context": example.row["context"].decode(),
        "ground_truth": example.truth,
        **example.about,
    }


_VERL_USE = """\
```bash
python -m verl.trainer.main_ppo algorithm.adv_estimator=grpo \\
    data.train_files={folder}/train.parquet data.val_files={folder}/validation.parquet \\
    reward.custom_reward_function.path={folder}/rpt_reward.py reward.custom_reward_function.name=compute_score …
```

verl hands over decoded text and does not tell whether a response was cut: a cut one is judged by what stands in it,
and a prediction that ends inside a character earns 0."""

_TRL_USE = """\
```python
import sys

from datasets import load_dataset
from trl import GRPOTrainer

sys.path.insert(0, "{folder}")
from rpt_reward import next_token_reward

train = load_dataset("parquet", data_files="{folder}/train.parquet", split="train")
trainer = GRPOTrainer(model=…, reward_funcs=next_token_reward, train_dataset=train, args=…)
```

The reward reads token ids (`policy.json` has their bytes), so it is that of `rpt train`, cut responses included."""

_OPENRLHF_USE = """\
```bash
python -m openrlhf.cli.train_ppo_ray --data.prompt_dataset {folder}/train.jsonl --data.input_key input \\
    --data.label_key label --data.apply_chat_template --reward.remote_url {folder}/rpt_reward.py …
```

Responses come decoded with their end-of-sequence token, so a cut one is known; a prediction that ends inside a
character earns 0."""

_NEMO_RL_USE = """\
`ResponseDataset` reads `train.jsonl` and `validation.jsonl` with `input_key: input` and `output_key: output`. With
`processor: math_hf_data_processor` an environment's `step` gets each row's `output` as `ground_truth` and asks for the
reward with

```python
from rpt_reward import judge

reward = judge(response, ground_truth).reward
```"""

_JSONL_USE = """\
```python
from rpt_reward import judge

judge(response, row["ground_truth"]).reward  # a response as text, or better as bytes
```"""

FORMATS: dict[str, Format] = {
    "verl": Format(_verl, _verl_schema, frozenset({"split", "index"}), _VERL_USE),
    "trl": Format(_trl, _trl_schema, frozenset({"prompt", "ground_truth"}), _TRL_USE),
    "openrlhf": Format(_openrlhf, None, frozenset({"input", "label", "datasource"}), _OPENRLHF_USE),
    "nemo-rl": Format(_nemo_rl, None, frozenset({"input", "output", "task_name", "messages"}), _NEMO_RL_USE),
    "jsonl": Format(_jsonl, None, frozenset({"prompt", "context", "ground_truth"}), _JSONL_USE),
}
"""The formats by their names in `rpt export`."""
