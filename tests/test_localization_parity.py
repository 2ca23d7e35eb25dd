"""`sightfix evaluate` and the server say the same of the same photos, digit for digit, on every kind of index."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from index_builder.describing import DescribeSettings
from index_builder.index_design import IndexDesign
from index_builder.push import push_version
from index_builder.update import UpdateSettings, build_index
from retrieval.bundle import open_bundle
from retrieval.describer import Describer
from retrieval.evaluation import Protocol
from retrieval.geo import Position, from_local_metres
from retrieval.index.milvus.store import MilvusStore
from retrieval.index.stores import FolderStore
from retrieval.localize.localizer import Localizer
from retrieval.references.reference import Reference
from service.answer import LocalizeAnswer, answer_of
from service.http.app import create_app
from service.serving.localization import LocalizationService
from service.settings import ServerSettings
from sightfix.evaluation_search import EvaluationRequest, Found, search_index
from tests.places import Places
from tests.retrieval.test_calibration import calibration
from tests.textured import VIEW, seen_from_elsewhere, textured
from tests.whitened_index import whiten

# A few numbers a photo, described in no time.
BUNDLE = Path(__file__).parent / "data" / "written_by_c0fdd7f" / "bundle"
# The last place looks like the first.
LOOKS = [0, 1, 2, 3, 4, 5, 6, 0]
RERANKED = 6
CENTRE = Position(48.0, 11.0)
# Three photos a place: as it is, and two other views.
VIEWS = [np.eye(3), VIEW, np.linalg.inv(VIEW)]


@dataclass(frozen=True)
class Kind:
    """One kind of index, and how it is served."""

    design: IndexDesign = field(default_factory=IndexDesign)
    calibrated: bool = False
    settings: dict[str, object] = field(default_factory=dict)
    whitened: bool = False
    milvus: bool = False
    over_http: bool = False


KINDS = {
    "exact": Kind(IndexDesign(storage="fp32"), over_http=True),
    "fp16": Kind(),
    "int8": Kind(IndexDesign(storage="int8")),
    "ivf": Kind(IndexDesign(type="ivf", recall=0.5)),
    "hnsw": Kind(IndexDesign(type="hnsw", recall=0.5)),
    "whitened": Kind(whitened=True, over_http=True),
    "whitened and calibrated": Kind(whitened=True, calibrated=True),
    "re-ranked": Kind(IndexDesign(local_features=True), settings={"rerank": RERANKED}),
    "re-ranked, whitened and calibrated": Kind(
        IndexDesign(local_features=True),
        calibrated=True,
        settings={"rerank": RERANKED},
        whitened=True,
        over_http=True,
    ),
    "memory-mapped": Kind(IndexDesign(type="ivf", recall=0.5), settings={"memory_map": True}),
    "milvus": Kind(IndexDesign(storage="fp32"), milvus=True),
    "milvus and calibrated": Kind(calibrated=True, milvus=True),
}


@dataclass(frozen=True)
class Town:
    """A folder of indexes, one for each kind, and photos to localize."""

    folder: Path
    places: Places
    queries: list[Path]
    describer: Describer

    @property
    def spec(self) -> str:
        return f"csv:{self.folder / 'queries.csv'}"

    def settings(self, kind: Kind) -> ServerSettings:
        """Of a server for an index of this kind; it is built when first asked for."""
        name = next(name for name, other in KINDS.items() if other is kind)
        indexes = self.folder / "indexes" / name.replace(" ", "-").replace(",", "")
        settings = ServerSettings(indexes=indexes, bundle=BUNDLE, threads=1, **kind.settings)
        if indexes.exists():
            return settings
        built = build_index(self.places, self.describer, indexes, "town", UpdateSettings(design=kind.design))
        manifest = whiten(built.folder, 8).manifest if kind.whitened else built.manifest
        if kind.calibrated:
            measured = calibration(min_familiarity=0.78)
            manifest.model_copy(update={"calibration": measured}).write(built.folder)
        if not kind.milvus:
            return settings
        settings = settings.model_copy(update={"store": f"milvus://{indexes}/milvus.db"})
        store = settings.open_store()
        assert isinstance(store, MilvusStore)
        push_version(FolderStore(indexes).open("town"), store)
        store.close()
        return settings


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Town:
    """Eight places 100 m apart; photos of some, mixtures of two, noise, and a place that no reference shows."""
    folder = tmp_path_factory.mktemp("town")
    rows = []
    for place, (number, view) in product(range(len(LOOKS)), enumerate(VIEWS)):
        path = folder / f"{place}-{number}.png"
        Image.fromarray(seen_from_elsewhere(textured(LOOKS[place]), view)).save(path)
        rows.append(Reference(path.name, path, from_local_metres(CENTRE, 100.0 * place + 3.0 * number, 0.0)))
    pictures = [seen_from_elsewhere(textured(place), VIEW @ VIEW) for place in (0, 5)]
    for one, other in ((2, 3), (5, 6)):
        pictures.append((0.5 * textured(one) + 0.5 * textured(other)).astype(np.uint8))
    pictures.append(np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8))
    pictures.append(textured(999))
    paths = [folder / f"query-{number}.png" for number in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        Image.fromarray(picture).save(path)
    listed = [f"{path.name},{CENTRE.lat},{CENTRE.lon}" for path in paths]
    (folder / "queries.csv").write_text("\n".join(["path,lat,lon", *listed, ""]))
    return Town(folder, Places(folder, rows), paths, Describer(open_bundle(BUNDLE), threads=1))


def evaluated(town: Town, settings: ServerSettings) -> Found:
    """What `sightfix evaluate` finds; one photo a batch, for the model's last digits depend on what is beside it."""
    store = settings.open_store()
    request = EvaluationRequest(town.spec, None, calibrate=False, rerank=settings.reranking)
    found = search_index(
        store.open(store.find(None)), request, town.describer, DescribeSettings(batch_size=1), Protocol()
    )
    store.close()
    return found


def answers(town: Town, kind: Kind, settings: ServerSettings) -> Iterator[LocalizeAnswer]:
    """What a server answers, one photo a time."""
    if kind.over_http:
        localization = LocalizationService(settings)
        with TestClient(create_app(localization)) as client:
            localization.live.wait_until_loaded(60.0)
            assert localization.live.readiness.state == "ready", localization.live.readiness.reason
            for path in town.queries:
                headers = {"Content-Type": "image/png"}
                answer = client.post("/localize?top_k=20", content=path.read_bytes(), headers=headers)
                yield LocalizeAnswer.model_validate_json(answer.content)
        return
    store = settings.open_store()
    localizer = Localizer(town.describer, store.open(store.find(None)), rerank=settings.reranking)
    for path in town.queries:
        yield answer_of(localizer.localize_file(path))
    store.close()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_evaluate_says_what_the_server_answers(town: Town, kind: Kind) -> None:
    settings = town.settings(kind)
    found = evaluated(town, settings)
    assert found.queries.outcomes is not None
    columns = zip(
        answers(town, kind, settings),
        found.queries.outcomes,
        found.queries.reported_rows,
        found.queries.reported_scores,
        strict=True,
    )
    for answer, (status, fix), rows, scores in columns:
        assert answer.status is status
        assert (answer.fix is None) == (fix is None)
        if answer.fix is not None and fix is not None:
            for name in ("radius_m", "confidence", "calibrated", "covariance_enu", "method", "support"):
                assert getattr(answer.fix, name) == getattr(fix, name), name
            assert (answer.fix.lat, answer.fix.lon) == (fix.position.lat, fix.position.lon)
            assert answer.fix.calibrated == kind.calibrated
        reported = [(one.reference_id, np.float32(one.score)) for one in answer.matches]
        best = rows[: len(reported)]
        expected = [reference.id for reference in found.references_of(best)]
        assert reported == list(zip(expected, scores.tolist()[: len(reported)], strict=True))
    statuses = {status for status, _ in found.queries.outcomes}
    assert len(statuses) > 1, "else the test says little"
