"""Push: upload shards to the Hub or a folder, with a card, the audit, and metadata by which every byte can be checked.

Input:   the shards of materialize and the records behind them; the audit's files, if they exist.
Output:  at the remote: `data/*.parquet` as published, `README.md` (the card), `croissant.json` (sha256 of every file,
         provenance), `manifest.yaml`, `record.json` and its list of shards, `audit.json` and `report.html`.
Command: rpt push data_manifests/<name>.yaml hf://datasets/owner/name|FOLDER
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from pipeline.audit.lineage import Lineage, lineage_of
from pipeline.config.errors import UserError
from pipeline.config.manifest import Manifest
from pipeline.core.artifact import Record, content_hash, seal_record
from pipeline.core.progress import log
from pipeline.export.card import card
from pipeline.export.croissant import METADATA, croissant
from pipeline.export.outside import find_secrets, redact
from pipeline.export.remote import repository, upload

EXAMPLES = 5
REPORTS = ("audit.json", "report.html")
"""The files that `rpt audit` writes."""


def push(manifest: Manifest, remote: str, *, work: Path) -> None:
    """Upload the shards of the selection that `manifest` describes to `remote`.

    Args:
        manifest: with its overrides.
        remote: `hf://datasets/owner/name` or a folder.
        work: folder of all manifests' artifacts.

    Raises:
        UserError: the shards do not exist, or the upload failed.
        IntegrityError: a shard was changed.
    """
    lineage = lineage_of(work / manifest.name, manifest)
    if lineage.materialize is None:
        raise UserError("the selection has no shards yet", where=manifest.name, hint="run `rpt data` first")
    name = repository(remote)
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        folder = Path(scratch) / "dataset"
        assemble(
            folder, manifest, lineage, audit=work / manifest.name / "audit" / lineage.select.fingerprint, name=name
        )
        upload(folder, remote, f"Shards {lineage.materialize.fingerprint} of {manifest.name}")
    log(f"push         {remote}")


def assemble(folder: Path, manifest: Manifest, lineage: Lineage, *, audit: Path, name: str | None) -> None:
    """Fill the data set's folder. `name` is that of the repository on the Hub; None if the remote is a folder."""
    shards = lineage.materialize
    assert shards is not None
    (folder / "data").mkdir(parents=True)
    for table in shards.summary.tables:
        for file in shards.files(table):
            _link(file.verified(), folder / "data" / file.path.name)
    seal_record(replace(shards, directory=folder, shard_list=shards.shard_list.save(folder)))
    for report in REPORTS:
        if (audit / report).is_file():
            _link(audit / report, folder / report)
    secret = find_secrets(manifest.model_dump(mode="json"))
    manifest = Manifest.model_validate(redact(manifest.model_dump(mode="json")))
    tree = yaml.safe_dump(manifest.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    (folder / "manifest.yaml").write_text(tree, encoding="utf-8")
    (folder / "README.md").write_text(card(manifest, lineage, _first_rows(shards), name or "FOLDER"), encoding="utf-8")
    files = {p.relative_to(folder).as_posix(): content_hash(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    url = f"https://huggingface.co/datasets/{name}" if name else "https://arxiv.org/abs/2506.08007"
    metadata = croissant(manifest, lineage, files, datetime.now(UTC).date(), url)
    (folder / METADATA).write_text(json.dumps(metadata, indent=1, ensure_ascii=False), encoding="utf-8")
    for path in (path for path in sorted(folder.iterdir()) if path.is_file()):
        text = path.read_text(encoding="utf-8")
        if any(value in text for value in secret):
            raise UserError(
                "not pushed: the file contains a password or a signed query of a source's URL",
                where=audit / path.name if path.name in REPORTS else path.name,
                hint="remove the file and run `rpt audit` again",
            )


def _first_rows(shards: Record) -> list[dict[str, Any]]:
    file = shards.files("train")[0].verified()
    batches = pq.ParquetFile(file).iter_batches(batch_size=EXAMPLES, columns=["context", "target", "entropy"])
    return [row for batch in islice(batches, 1) for row in batch.to_pylist()]


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)
