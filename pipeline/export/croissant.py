"""Writes and reads Croissant metadata of published shards: files with their sha256, columns, and provenance.

http://mlcommons.org/croissant/1.0; provenance in the terms of PROV-O, as Croissant 1.1 has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

import pyarrow as pa

from pipeline.audit.lineage import Lineage
from pipeline.config.manifest import Manifest
from pipeline.export.card import columns_of, licences, meaning_of
from pipeline.export.outside import check_path
from pipeline.shards.schema import SPLITS

_OWN = (
    "citeAs column conformsTo data dataType equivalentProperty examples extract field fileProperty fileObject fileSet "
    "format includes isLiveDataset jsonPath key md5 parentField path recordSet references regex repeated replace "
    "samplingRate separator source subField transform"
)
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    **{name: f"cr:{name}" for name in _OWN.split()},
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "prov": "http://www.w3.org/ns/prov#",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
}
METADATA = "croissant.json"
PARQUET = "application/x-parquet"


def croissant(
    manifest: Manifest, lineage: Lineage, files: Mapping[str, str], published: date, url: str
) -> dict[str, Any]:
    """Return the JSON-LD of a data set.

    Args:
        manifest: the manifest of the shards.
        lineage: the records of the stages.
        files: sha256 by path below the data set, for every file except this one.
        published: the day of publication.
        url: the address of the data set.
    """
    present = [split for split in SPLITS if any(path.startswith(f"data/{split}-") for path in files)]
    named = licences(manifest.corpus)
    licence = {"license": named[0] if len(named) == 1 else named} if named else {}
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": manifest.name,
        "description": manifest.description or f"Next-token sites of {manifest.name}",
        "citeAs": "Reinforcement Pre-Training, arXiv:2506.08007",
        "datePublished": published.isoformat(),
        "url": url,
        "version": "1.0.0",
        **licence,
        "distribution": [*map(_file, files.items()), *map(_set, present)],
        "recordSet": [_records(split, columns_of(manifest)) for split in present],
        "prov:wasGeneratedBy": [
            {
                "@type": "prov:Activity",
                "@id": f"{stage}/{record.fingerprint}",
                "name": stage,
                "version": str(record.version),
                "identifier": record.content,
                "prov:used": sorted(record.inputs.values()),
            }
            for stage, record in lineage.records.items()
        ],
    }


def checksums(tree: Any) -> dict[str, str]:
    """Return the sha256, by path, of the files that Croissant metadata list.

    Raises:
        ValueError: the tree is not Croissant metadata.
        IntegrityError: a path leads out of the data set.
    """
    try:
        entries = [entry for entry in tree["distribution"] if entry["@type"] == "cr:FileObject"]
        found = {entry["contentUrl"]: entry["sha256"] for entry in entries}
    except (KeyError, TypeError) as error:
        raise ValueError("not Croissant metadata") from error
    return {check_path(path): str(sha256) for path, sha256 in found.items()}


def is_pushed(tree: Any) -> bool:
    """Return whether `rpt push` wrote these metadata, which then name the stage materialize."""
    try:
        names = [activity["@id"] for activity in tree["prov:wasGeneratedBy"]]
    except (KeyError, TypeError):
        return False
    return any(str(name).startswith("materialize/") for name in names)


def _file(item: tuple[str, str]) -> dict[str, Any]:
    path, sha256 = item
    formats = {".parquet": PARQUET, ".json": "application/json", ".yaml": "text/yaml", ".md": "text/markdown"}
    kind = next((kind for suffix, kind in formats.items() if path.endswith(suffix)), "text/html")
    return {
        "@type": "cr:FileObject",
        "@id": path,
        "name": path,
        "contentUrl": path,
        "encodingFormat": kind,
        "sha256": sha256,
    }


def _set(split: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": f"{split}-files",
        "name": f"{split}-files",
        "encodingFormat": PARQUET,
        "includes": f"data/{split}-*.parquet",
    }


def _records(split: str, columns: pa.Schema) -> dict[str, Any]:
    fields = []
    for column in columns:
        of_list = pa.types.is_list(column.type)
        fields.append(
            {
                "@type": "cr:Field",
                "@id": f"{split}/{column.name}",
                "name": column.name,
                "description": meaning_of(column.name),
                "dataType": _type(column.type.value_type if of_list else column.type),
                **({"repeated": True} if of_list else {}),
                "source": {"fileSet": {"@id": f"{split}-files"}, "extract": {"column": column.name}},
            }
        )
    return {"@type": "cr:RecordSet", "@id": split, "name": split, "field": fields}


def _type(kind: pa.DataType) -> str:
    if pa.types.is_boolean(kind):
        return "sc:Boolean"
    if pa.types.is_integer(kind):
        return "sc:Integer"
    return "sc:Float" if pa.types.is_floating(kind) else "sc:Text"
