"""Publishing in a Milvus: what is refused, what is gone on with, and what a kill leaves."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index_builder import push as pushing
from index_builder.push import PushSettings, push_to, push_version
from index_builder.update import build_index
from retrieval.describer import Describer
from retrieval.errors import (
    IndexNotFoundError,
    MissingExtraError,
    ParameterError,
    PlaceIndexError,
    ReferenceDataError,
    StorageError,
    StoreUnavailableError,
)
from retrieval.index.milvus.collection import MilvusCollection, MilvusRow
from retrieval.index.milvus.connection import MilvusAddress, collection_of
from retrieval.index.milvus.records import CLAIM_NAME, Claim
from retrieval.index.milvus.store import MilvusStore
from retrieval.index.place_index import PlaceIndex
from retrieval.index.stores import FolderStore
from tests.forked import run_forked
from tests.index_builder.killed_push import push_and_die
from tests.places import Places, make_places
from tests.retrieval.refusal import refused

pytestmark = pytest.mark.usefixtures("milvus_polled_often")

STEPS = ["half of the rows", "rows written", "indexed", "checked", "before the manifest", "recorded", "current"]


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory, describer: Describer) -> tuple[Path, str, str]:
    """A folder of indexes with two versions of one: 12 references, then 18."""
    folder = tmp_path_factory.mktemp("town")
    places = make_places(folder, 18)
    versions = [
        build_index(Places(places.root, places.rows[:count]), describer, folder / "indexes", "town").manifest.version
        for count in (12, 18)
    ]
    return folder / "indexes", versions[0], versions[1]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MilvusStore]:
    store = MilvusStore(MilvusAddress.parse(f"milvus://{tmp_path}/milvus.db"))
    yield store
    store.close()


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_the_old_version_stays_and_the_push_goes_on(
    town: tuple[Path, str, str], tmp_path: Path, step: str
) -> None:
    indexes, first, second = town
    database = tmp_path / "milvus.db"
    push_to(f"milvus://{database}", FolderStore(indexes).open("town", first))
    log = tmp_path / "killed.log"
    assert run_forked(push_and_die, indexes, database, step, log=log) == -signal.SIGKILL, log.read_text()
    store = MilvusStore(MilvusAddress.parse(f"milvus://{database}"))
    try:
        assert store.current("town") == (second if step == "current" else first)
        serving = store.open("town")
        queries = serving.descriptors(np.arange(serving.count))
        assert (serving.search(queries, 1).rows[:, 0] == np.arange(serving.count)).all()
        published = step in ("recorded", "current")
        assert store.unfinished("town") == ([] if published else [second])
        counts: list[int] = []
        local = FolderStore(indexes).open("town", second)
        push_version(local, store, on_rows=counts.append)
        assert sum(counts) == 18
        assert (store.current("town"), store.versions("town"), store.unfinished("town")) == (
            second,
            [first, second],
            [],
        )
        opened = store.open("town")
        rows = np.arange(18)
        np.testing.assert_array_equal(opened.descriptors(rows), local.descriptors(rows))
        assert opened.references(rows) == local.references(rows)
        assert opened.collection.count(strong=True) == 18
    finally:
        store.close()


def test_a_version_that_is_there_is_not_written_again(town: tuple[Path, str, str], store: MilvusStore) -> None:
    indexes, first, second = town
    local = FolderStore(indexes)
    push_version(local.open("town", first), store)
    push_version(local.open("town", second), store, PushSettings(activate=False))
    assert (store.current("town"), store.versions("town")) == (first, [first, second])
    steps: list[str] = []
    push_version(local.open("town", second), store, reached=steps.append)
    assert (steps, store.current("town")) == (["current"], second)


def test_only_so_many_versions_are_kept(town: tuple[Path, str, str], store: MilvusStore) -> None:
    indexes, first, second = town
    local = FolderStore(indexes)
    push_version(local.open("town", first), store)
    push_version(local.open("town", second), store, PushSettings(keep=1))
    assert store.versions("town") == [second]
    assert not store.connection.client.has_collection(collection_of("town", first))


def test_too_little_recall_is_not_published(
    town: tuple[Path, str, str], store: MilvusStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexes, _, second = town
    search = MilvusCollection.search

    def forgetful(*given: Any, **named: Any) -> list[list[MilvusRow]]:
        return [found[:3] for found in search(*given, **named)]

    monkeypatch.setattr(MilvusCollection, "search", forgetful)
    with pytest.raises(
        PlaceIndexError, match=r"IVF_SQ8 returns \d+.\d% of what exact .*, 100.0% are wanted"
    ) as refusal:
        push_version(FolderStore(indexes).open("town", second), store, PushSettings(type="IVF_SQ8", recall=1.0))
    assert refusal.value.code == "gate_failed"
    assert (store.names(), store.versions("town"), store.unfinished("town")) == ([], [], [second])


def test_rows_that_milvus_lost_are_not_published(
    town: tuple[Path, str, str], store: MilvusStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexes, _, second = town
    build = pushing._Push.build

    def losing(push: pushing._Push) -> None:
        build(push)
        store.connection.client.delete(push.name, filter="row == 3")

    monkeypatch.setattr(pushing._Push, "build", losing)
    with pytest.raises(PlaceIndexError, match="Milvus holds 17 rows of 18; nothing was published"):
        push_version(FolderStore(indexes).open("town", second), store)
    assert store.names() == []


def test_rows_that_milvus_loses_later_are_noticed_when_the_version_is_opened(
    town: tuple[Path, str, str], store: MilvusStore
) -> None:
    indexes, _, second = town
    push_version(FolderStore(indexes).open("town", second), store)
    store.connection.client.delete(collection_of("town", second), filter="row in [3, 4]")
    with pytest.raises(PlaceIndexError, match="Milvus holds 16 rows, the manifest says 18"):
        store.open("town")


def test_a_damaged_version_is_written_again(town: tuple[Path, str, str], store: MilvusStore) -> None:
    indexes, _, second = town
    local = FolderStore(indexes).open("town", second)
    push_version(local, store)
    store.connection.client.delete(collection_of("town", second), filter="row in [3, 4]")
    push_version(local, store)
    assert store.open("town").references(np.arange(18)) == local.references(np.arange(18))


def test_rows_that_are_there_twice_do_not_stop_pushes_for_ever(
    town: tuple[Path, str, str], store: MilvusStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server counts a row that was inserted twice as two; milvus-lite does not, so the count is made up."""
    indexes, _, second = town
    local = FolderStore(indexes).open("town", second)
    with monkeypatch.context() as doubled:
        doubled.setattr(MilvusCollection, "count", lambda *_, **__: 19)
        with pytest.raises(PlaceIndexError, match="Milvus holds 19 rows of 18"):
            push_version(local, store)
    assert not store.connection.client.has_collection(collection_of("town", second))
    push_version(local, store)
    assert store.current("town") == second


def test_another_type_of_a_published_version_is_refused(town: tuple[Path, str, str], store: MilvusStore) -> None:
    indexes, _, second = town
    push_version(FolderStore(indexes).open("town", second), store)
    with pytest.raises(ParameterError, match="published as FLAT of fp32 already"):
        push_version(FolderStore(indexes).open("town", second), store, PushSettings(type="HNSW"))


def test_two_pushes_of_one_version_do_not_meet(town: tuple[Path, str, str], store: MilvusStore) -> None:
    indexes, first, second = town
    elsewhere = Claim(host="another", process=1, at=datetime.now(UTC))
    store.records.write(collection_of("town", first), CLAIM_NAME, elsewhere.model_dump_json().encode())
    with pytest.raises(StorageError, match="process 1 of another is pushing this version") as refusal:
        push_version(FolderStore(indexes).open("town", first), store)
    assert refusal.value.code == "build_in_progress"
    # Nor does prune take it for a leftover while the claim is fresh.
    store.connection.client.create_collection(collection_of("town", first), dimension=2)
    push_version(FolderStore(indexes).open("town", second), store, PushSettings(keep=1))
    assert store.unfinished("town") == [first]
    old = elsewhere.model_copy(update={"at": datetime.now(UTC) - timedelta(hours=1)})
    store.records.write(collection_of("town", first), CLAIM_NAME, old.model_dump_json().encode())
    store.prune("town", 1)
    assert store.unfinished("town") == []


def test_claims_of_processes_that_are_gone_hold_nothing() -> None:
    now = datetime.now(UTC)
    here = socket.gethostname()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert not Claim(host=here, process=gone.pid, at=now).holds()
    assert not Claim(host=here, process=os.getpid(), at=now).holds()
    assert Claim(host=here, process=os.getppid(), at=now).holds()
    assert Claim(host="another", process=gone.pid, at=now).holds()
    assert not Claim(host="another", process=gone.pid, at=now - timedelta(minutes=6)).holds()


def test_prune_leaves_a_version_that_becomes_current_at_this_moment(
    town: tuple[Path, str, str], store: MilvusStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexes, first, second = town
    for version in (first, second):
        push_version(FolderStore(indexes).open("town", version), store)
    remove_file = store.records.remove_file

    def after_a_rollback(collection: str, file: str) -> None:
        monkeypatch.setattr(store.records, "remove_file", remove_file)
        store._move_alias("town", first, there=True)
        remove_file(collection, file)

    monkeypatch.setattr(store.records, "remove_file", after_a_rollback)
    assert store.prune("town", 1) == []
    assert (store.current("town"), store.open("town").count) == (first, 12)


def test_a_version_that_is_pruned_at_this_moment_does_not_become_current(
    town: tuple[Path, str, str], store: MilvusStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexes, first, second = town
    for version in (first, second):
        push_version(FolderStore(indexes).open("town", version), store)
    current = store._current

    def then_prune(name: str) -> str | None:
        monkeypatch.setattr(store, "_current", current)
        found = current(name)
        assert store.prune("town", 1) == [first]
        store.connection.client.create_collection(collection_of("town", first), dimension=2)
        return found

    monkeypatch.setattr(store, "_current", then_prune)
    with pytest.raises(IndexNotFoundError, match="was removed at this moment"):
        store.activate("town", first)
    assert store.current("town") == second


def test_old_versions_that_cannot_be_removed_fail_no_push(
    town: tuple[Path, str, str], store: MilvusStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    indexes, first, second = town
    push_version(FolderStore(indexes).open("town", first), store)

    def refuses(*_: object) -> list[str]:
        raise StoreUnavailableError("Milvus does not answer as it should (deadline)")

    monkeypatch.setattr(store, "prune", refuses)
    push_version(FolderStore(indexes).open("town", second), store, PushSettings(keep=1))
    assert store.current("town") == second
    assert "old versions of town could not be removed" in caplog.text


def test_a_reference_with_long_columns_is_named(tmp_path: Path, store: MilvusStore, describer: Describer) -> None:
    places = make_places(tmp_path, 3)
    places.rows[1] = replace(places.rows[1], metadata={"story": "x" * 70_000})
    folder = build_index(places, describer, tmp_path / "indexes", "town").folder
    with pytest.raises(ReferenceDataError, match=r"the reference 'photos/0001.jpg' has 70\d\d\d bytes of columns"):
        push_version(PlaceIndex.open(folder), store)
    assert store.names() == []


def test_a_milvus_that_is_away_says_where_and_what_to_do() -> None:
    with pytest.raises(StoreUnavailableError, match=r"milvus://127.0.0.1:9: Milvus cannot be reached .*MILVUS_TOKEN"):
        MilvusStore(MilvusAddress.parse("milvus://127.0.0.1:9"))


def test_without_pymilvus_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    text = "Milvus needs pymilvus. Install it: pip install 'sightfix[milvus]'."
    with refused(MissingExtraError, text, "missing_extra"):
        MilvusStore(MilvusAddress.parse(f"milvus://{tmp_path}/milvus.db"))
