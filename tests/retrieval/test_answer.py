import json
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from retrieval.localize.fix import FixStatus
from service.answer import (
    FixAnswer,
    IndexAnswer,
    LocalizeAnswer,
    MatchAnswer,
    ModelAnswer,
    Problem,
    TimingsAnswer,
)

FIX = FixAnswer(
    lat=55.7,
    lon=13.2,
    radius_m=12.0,
    confidence=0.9,
    calibrated=False,
    covariance_enu=((78.0, 3.1), (3.1, 64.2)),
    method="top1",
    support=3,
)
ANSWER = LocalizeAnswer(
    request_id="ab",
    status=FixStatus.LOCATED,
    fix=FIX,
    matches=[
        MatchAnswer(
            rank=1, reference_id="a.jpg", lat=1.0, lon=2.0, score=0.8, captured_at=datetime(2026, 1, 2, tzinfo=UTC)
        )
    ],
    model=ModelAnswer(
        name="m", fingerprint="f", precision="fp32", provider="cpu", runtime="ONNX Runtime 1.32.0", device="CPU"
    ),
    index=IndexAnswer(name="i", version="v", size=1, type="exact"),
    timings_ms=TimingsAnswer(decode=1.0, describe=2.0, search=3.0, fix=4.0, total=10.0),
)


def test_an_answer_survives_json() -> None:
    assert LocalizeAnswer.model_validate_json(ANSWER.model_dump_json()) == ANSWER


def test_the_json_has_the_names_of_the_design() -> None:
    answer = json.loads(ANSWER.model_dump_json())
    assert set(answer) == {"request_id", "status", "fix", "matches", "model", "index", "timings_ms"}
    assert set(answer["fix"]) == {
        "lat", "lon", "radius_m", "confidence", "calibrated", "covariance_enu", "method", "support"
    }  # fmt: skip
    assert set(answer["matches"][0]) == {
        "rank", "reference_id", "lat", "lon", "score", "heading", "captured_at", "session", "thumbnail"
    }  # fmt: skip
    assert set(answer["timings_ms"]) == {"decode", "queue", "describe", "search", "fix", "total"}
    assert answer["status"] == "LOCATED"
    assert answer["timings_ms"]["queue"] == 0.0


def test_an_unknown_key_is_an_error() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        IndexAnswer(name="i", version="v", size=1, type="exact", colour="red")


@pytest.mark.parametrize("confidence", [-0.01, 1.0000001])
def test_confidence_is_a_probability(confidence: float) -> None:
    with pytest.raises(ValidationError, match="confidence"):
        FixAnswer(**{**FIX.model_dump(), "confidence": confidence})


def test_an_answer_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        FIX.lat = 0.0


def test_a_problem_carries_the_field_that_is_wrong() -> None:
    problem = Problem.model_validate(
        {"type": "t", "title": "x", "status": 422, "detail": "d", "code": "c", "limit": 3,
         "errors": [{"pointer": "/top_k", "message": "too large"}]}
    )  # fmt: skip
    assert problem.errors is not None
    assert problem.errors[0].pointer == "/top_k"
    assert problem.model_dump()["limit"] == 3
