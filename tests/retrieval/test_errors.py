import pytest

from retrieval.errors import (
    ArtefactError,
    BundleError,
    ImageError,
    IndexNotFoundError,
    MissingExtraError,
    ModelIndexMismatchError,
    ParameterError,
    PlaceIndexError,
    ReferenceDataError,
    ServerError,
    SightfixError,
    StorageError,
    counted,
)


def test_an_error_says_where_what_and_the_remedy() -> None:
    error = SightfixError("the row has no latitude", where="refs.csv, row 3", remedy="Fill it in")
    assert str(error) == "refs.csv, row 3: the row has no latitude. Fill it in."
    assert error.args == ("refs.csv, row 3: the row has no latitude. Fill it in.",)


def test_where_and_remedy_may_be_left_out() -> None:
    assert str(SightfixError("it is late")) == "it is late."
    assert str(SightfixError("it is late", where="clock")) == "clock: it is late."
    assert str(SightfixError("it is late", remedy="Sleep")) == "it is late. Sleep."


@pytest.mark.parametrize(
    ("error_type", "code"),
    [
        (SightfixError, "error"),
        (ParameterError, "validation_error"),
        (ImageError, "image_undecodable"),
        (ReferenceDataError, "reference_data"),
        (ArtefactError, "artefact_damaged"),
        (BundleError, "bundle_damaged"),
        (PlaceIndexError, "place_index_damaged"),
        (IndexNotFoundError, "index_not_found"),
        (ModelIndexMismatchError, "model_index_mismatch"),
        (StorageError, "storage"),
        (MissingExtraError, "missing_extra"),
        (ServerError, "server"),
    ],
)
def test_codes_are_stable(error_type: type[SightfixError], code: str) -> None:
    assert error_type("x").code == code
    assert error_type("x", code="special").code == "special"


@pytest.mark.parametrize(
    ("count", "words", "text"),
    [
        (0, ("photo",), "0 photos"),
        (1, ("photo",), "1 photo"),
        (1234, ("photo",), "1,234 photos"),
        (2, ("query",), "2 queries"),
        (2, ("day",), "2 days"),
        (2, ("index",), "2 indexes"),
        (2, ("batch",), "2 batches"),
        (1, ("photo is", "photos are"), "1 photo is"),
        (3, ("photo is", "photos are"), "3 photos are"),
    ],
)
def test_counted_nouns_have_their_plural(count: int, words: tuple[str, ...], text: str) -> None:
    assert counted(count, *words) == text
