import numpy as np
import pytest

from retrieval.engines.compiled import BatchProfile, BatchProfiles, default_profiles
from retrieval.errors import ParameterError


def test_a_single_frame_has_a_profile_of_its_own() -> None:
    profiles = default_profiles(32)
    assert str(profiles) == "1:1:1,2:16:32"
    assert [profiles.choose(count) for count in (1, 2, 3, 17, 32)] == [0, 1, 1, 1, 1]


def test_batches_are_padded_to_powers_of_two_and_the_largest() -> None:
    profiles = default_profiles(12)
    assert profiles.sizes == (1, 2, 4, 8, 12)
    assert [profiles.padded_size(count) for count in range(1, 13)] == [1, 2, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12]


@pytest.mark.parametrize(("max_batch", "sizes"), [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (32, (1, 2, 4, 8, 16, 32))])
def test_sizes(max_batch: int, sizes: tuple[int, ...]) -> None:
    profiles = default_profiles(max_batch)
    assert profiles.sizes == sizes
    assert profiles.max_batch == max_batch
    for count in range(1, max_batch + 1):
        profile = profiles.profiles[profiles.choose(count)]
        assert profile.min <= profiles.padded_size(count) <= profile.max


def test_padding_adds_zeros_and_copies_nothing_needlessly() -> None:
    images = np.full((3, 2, 2, 3), 7, np.uint8)
    padded = default_profiles(8).pad(images)
    assert padded.shape == (4, 2, 2, 3)
    assert (padded[:3] == 7).all()
    assert (padded[3] == 0).all()
    assert default_profiles(8).pad(padded) is padded


@pytest.mark.parametrize("count", [0, 33])
def test_a_batch_the_engine_was_not_built_for_is_refused(count: int) -> None:
    with pytest.raises(ParameterError, match=r"1 to 32.*Send smaller batches"):
        default_profiles(32).padded_size(count)


def test_profiles_must_adjoin() -> None:
    with pytest.raises(ParameterError, match="should begin at 2"):
        BatchProfiles((BatchProfile(1, 1, 1), BatchProfile(3, 4, 8)))
    with pytest.raises(ParameterError, match="should begin at 1"):
        BatchProfiles((BatchProfile(2, 2, 2),))
    with pytest.raises(ParameterError, match="needs a batch profile"):
        BatchProfiles(())


@pytest.mark.parametrize("values", [(0, 1, 1), (2, 1, 4), (1, 5, 4)])
def test_a_profile_is_ordered(values: tuple[int, int, int]) -> None:
    with pytest.raises(ParameterError, match="min ≤ opt ≤ max"):
        BatchProfile(*values)
