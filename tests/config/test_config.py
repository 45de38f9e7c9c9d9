"""Manifests and recipes: what is refused, and in which words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml

from pipeline.config.base import Config, canonical_json, differences
from pipeline.config.corpus import CorpusConfig
from pipeline.config.errors import UserError
from pipeline.config.loading import load
from pipeline.config.manifest import Manifest
from pipeline.config.recipe import Recipe
from pipeline.config.resources import list_names
from pipeline.config.study import StudyConfig

MANIFEST = """
name: tiny
corpus: {source: corpus.jsonl, text: "{problem}"}
proxy: {train: {folds: 2}}
materialize: {policy_tokenizer: somewhere}
"""


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(MANIFEST)
    return path


def test_overrides_are_typed_and_nested(manifest: Path) -> None:
    loaded = load(
        Manifest, manifest, ["select.where=entropy > 1.2", "select.max_sites=7", "corpus.validation={documents: 3}"]
    )
    assert loaded.select.where == "entropy > 1.2"
    assert loaded.select.max_sites == 7
    assert loaded.corpus.validation.documents == 3


def test_an_override_of_a_whole_block_replaces_it(manifest: Path) -> None:
    assert load(Manifest, manifest, ["proxy={model: some/model}"]).proxy.model == "some/model"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("selct.where=x", ["unknown key `selct`", "did you mean `select`"]),
        ("select.were=x", ["unknown key `select.were`", "did you mean `where`"]),
        ("proxy.train.fold=3", ["unknown key `proxy.train.fold`", "did you mean `folds`"]),
        ("select.bands.hard=0.1", ["select.bands", "easy < medium < hard"]),
        ("score.window=-1", ["score.window", "greater than 1"]),
        ("proxy.train.lr=.inf", ["proxy.train.lr", "finite"]),
        ("proxy.train.epochs=.nan", ["proxy.train.epochs", "finite"]),
        ("corpus.near_duplicates.threshold=.nan", ["corpus.near_duplicates.threshold", "finite"]),
        ("select.mixture={weights: {a: .inf, b: 1}}", ["select.mixture.weights.a", "finite"]),
        ("score.overlap=4096", ["overlap (4096) must be smaller than window (4096)"]),
        ("corpus.sha256=abc", ["corpus.sha256"]),
        ("corpus.validation={documents: 2, fraction: 0.5}", ["exactly one of documents, fraction, column"]),
        ("proxy.model=x", ["exactly one of model, train"]),
        ("name=../evil", ["name"]),
        ("nonsense", ["not of the form key.subkey=value"]),
        ('corpus.text="{a', ["the value is not valid YAML", '"{a']),
        ("corpus.text={a}", ["`corpus.text`", "quote a text that has them", 'text: "{name}"']),
    ],
)
def test_mistakes_are_named(manifest: Path, override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load(Manifest, manifest, [override])
    for word in words:
        assert word in str(caught.value)


def test_where_the_parts_of_a_corpus_lie_is_no_part_of_its_identity_and_is_kept() -> None:
    def corpus(place: str) -> CorpusConfig:
        part = {"source": place, "revision": place}
        sources = [part | {"name": name, "license": place} for name in ("a", "b")]
        return CorpusConfig.model_validate({"sources": sources, "decontaminate": [part]})

    here, there = corpus("here"), corpus("there")
    assert here.identity() == there.identity()
    assert [set(part) for part in here.identity()["sources"]] == [{"name", "format", "text"}] * 2
    assert CorpusConfig.model_validate(here.model_dump(mode="json")) == here


def test_mistakes_that_are_of_no_one_key_show_no_tree(manifest: Path) -> None:
    with pytest.raises(UserError) as caught:
        load(Manifest, manifest, ["select.mixture={weights: {a: 1}}"])
    assert str(caught.value).startswith("select.mixture.weights are of a") and "got" not in str(caught.value)


def test_a_missing_required_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("name: x\ncorpus: {source: s}\nproxy: {train: {}}\nmaterialize: {}\n")
    with pytest.raises(UserError, match=r"`materialize.policy_tokenizer` is required"):
        load(Manifest, tmp_path / "m.yaml")


@pytest.mark.parametrize("text", ["a: [", "- a list", "", "\x00"])
def test_files_that_are_no_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(UserError, match=r"m\.yaml"):
        load(Manifest, tmp_path / "m.yaml")


def test_a_missing_file_lists_its_neighbours(manifest: Path) -> None:
    with pytest.raises(UserError, match=r"not found.*tiny\.yaml"):
        load(Manifest, manifest.with_name("tinny.yaml"))


@pytest.mark.parametrize(("kind", "folder"), [(Manifest, "data_manifests"), (Recipe, "recipes")])
def test_every_packaged_file_is_found_by_the_name_that_is_listed(kind: type[Config], folder: str) -> None:
    for name in list_names(folder):
        if "study" not in name:
            assert load(kind, Path(name)).name == name


def test_a_packaged_manifest_is_the_same_by_its_name_and_by_its_path(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(repository)
    by_name, by_path = (load(Manifest, Path(path)) for path in ("demo", "data_manifests/demo.yaml"))
    assert by_path == by_name
    monkeypatch.chdir(tmp_path)
    Path("data_manifests").mkdir()
    Path("data_manifests/demo.yaml").write_text(MANIFEST)
    assert load(Manifest, Path("data_manifests/demo.yaml")).name == "tiny", "the user's own file"


def test_models_are_frozen(manifest: Path) -> None:
    with pytest.raises(Exception, match="frozen"):
        load(Manifest, manifest).name = "other"  # type: ignore[misc]


def test_locations_are_no_part_of_the_identity(manifest: Path) -> None:
    here = load(Manifest, manifest).corpus
    there = load(Manifest, manifest, ["corpus.source=/elsewhere/corpus.jsonl"]).corpus
    assert here.identity() == there.identity()
    assert here.identity() != load(Manifest, manifest, ['corpus.text="{solution}"']).corpus.identity()


def test_settings_of_execution_are_no_part_of_the_identity(manifest: Path) -> None:
    here, there = (load(Manifest, manifest, [f"score.batch_tokens={n}"]).score for n in (512, 1024))
    assert here.identity() == there.identity() and "batch_tokens" not in here.identity()
    assert here.execution_settings() == {"batch_tokens": 512}


def test_every_field_that_a_model_marks_is_one_of_its_fields() -> None:
    def below(kind: type[Config]) -> list[type[Config]]:
        return [kind, *(model for sub in kind.__subclasses__() for model in below(sub))]

    for kind in below(Config):
        assert kind.locations | kind.execution <= set(kind.model_fields), kind
        assert not kind.locations & kind.execution, kind


def test_canonical_json_does_not_depend_on_order() -> None:
    assert (
        canonical_json({"b": [1, None], "a": "é"})
        == canonical_json({"a": "é", "b": [1, None]})
        == '{"a":"é","b":[1,null]}'
    )


def test_differences_name_fields() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}) == ["a.c: 2 → 3", "d: None → 4"]


@pytest.mark.parametrize(
    ("kind", "folder", "name"),
    [(Manifest, "data_manifests", "manifest"), (Recipe, "recipes", "recipe"), (StudyConfig, "recipes", "study")],
)
def test_shipped_files_load_and_satisfy_the_schema(repository: Path, kind: type, folder: str, name: str) -> None:
    files = [p for p in (repository / folder).glob("*.yaml") if p.name.startswith("study-") == (name == "study")]
    assert files
    for path in files:
        load(kind, path)
        jsonschema.validate(yaml.safe_load(path.read_text()), kind.model_json_schema())
    published = json.loads((repository / folder / f"{name}.schema.json").read_text())
    assert published == kind.model_json_schema(), "run `rpt schema` again: editors complete from the file"


@pytest.mark.parametrize("kind", [Manifest, Recipe, StudyConfig])
def test_every_field_has_a_description(kind: type[Config]) -> None:
    models = {kind, *models_below(kind)}
    assert len(models) > 1
    missing = [
        f"{m.__name__}.{name}" for m in models for name, field in m.model_fields.items() if not field.description
    ]
    assert not missing, "write the description as a string under the field"


def models_below(annotation: Any) -> Iterator[type[Config]]:
    """Yield the configuration models that a type names, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
        for field in annotation.model_fields.values():
            yield from models_below(field.annotation)
    for argument in get_args(annotation):
        yield from models_below(argument)


def test_a_bare_true_is_sql(manifest: Path) -> None:
    assert load(Manifest, manifest, ["select.where=true"]).select.where == "true"


@pytest.mark.parametrize(
    "kind, path, said",
    [
        (Manifest, "recipes/demo.yaml", "a recipe, not a manifest"),
        (Recipe, "data_manifests/demo.yaml", "a manifest, not a recipe"),
        (Recipe, "recipes/study-demo.yaml", "a study, not a recipe"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(kind, path, said):
    with pytest.raises(UserError, match=said):
        load(kind, Path(path))


def test_a_field_that_was_added_later_counts_only_when_it_is_set() -> None:
    corpus = CorpusConfig(source="x")
    assert not {"encoding", "records", "csv"} & corpus.identity().keys()
    assert "split" not in corpus.identity()["validation"]
    other = CorpusConfig.model_validate({"source": "x", "encoding": "latin-1", "csv": {"header": False}})
    assert other.identity() == corpus.identity() | {"encoding": "latin-1", "csv": other.csv.identity()}
