"""Decoded photos are `read_image`'s, decoded once, never stale, and survive kills, full disks and each other."""

import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval.errors import ArtefactError, ReferenceDataError, StorageError
from retrieval.images import Preprocessing, read_image
from retrieval.references.reference import Reference
from tests.places import make_places, pattern
from tests.retrieval.refusal import refused
from tests.training.photos.filling_process import PREPROCESSING
from training.photos import cache as photo_cache
from training.photos.cache import PhotoCache, fill_photo_cache
from training.photos.store import PhotoIdentity, PhotoStore

REPOSITORY = Path(__file__).resolve().parents[3]
ROW_BYTES = 32 * 48 * 3


@pytest.fixture(autouse=True)
def two_decoders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photo_cache, "available_cores", lambda: 2)


@pytest.fixture
def references(tmp_path: Path) -> list[Reference]:
    return make_places(tmp_path, 9).rows


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the photos that were decoded, in the order in which that began."""
    names: list[str] = []

    def read(path: Path, *rest: object) -> NDArray[np.uint8]:
        names.append(path.name)
        return read_image(path, *rest)

    monkeypatch.setattr(photo_cache, "read_image", read)
    return names


@pytest.fixture
def two_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photo_cache, "_ADDED_AT_ONCE", 2 * ROW_BYTES)


def fill(folder: Path, references: Sequence[Reference], image: Preprocessing = PREPROCESSING) -> PhotoCache:
    return fill_photo_cache(folder, references, image)


def assert_whole(cache: PhotoCache, references: Sequence[Reference], image: Preprocessing = PREPROCESSING) -> None:
    assert cache.references == tuple(references)
    assert len(cache) == len(references)
    expected = np.stack([read_image(reference.path, image) for reference in references])
    assert np.array_equal(cache.rows(np.arange(len(cache))), expected)


def change(path: Path, seed: int = 77) -> None:
    pattern(seed).save(path, quality=92)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000_000))


def store_folder(folder: Path) -> Path:
    return next(folder.iterdir())


def test_pixels_are_those_of_read_image(tmp_path: Path, references: list[Reference], decoded: list[str]) -> None:
    for image in (PREPROCESSING, Preprocessing(height=40, width=24, fit="crop", filter="bilinear")):
        cache = fill(tmp_path / "cache", references, image)
        assert_whole(cache, references, image)
        assert cache.shape == (image.height, image.width, 3)
    assert len(decoded) == 18


def test_rows_come_in_any_order_repeatedly_and_as_a_copy(tmp_path: Path, references: list[Reference]) -> None:
    cache = fill(tmp_path / "cache", references)
    whole = cache.rows(np.arange(9))
    rows = cache.rows(np.array([7, 0, 7, 3]))
    assert np.array_equal(rows, whole[[7, 0, 7, 3]])
    assert type(rows) is np.ndarray
    assert rows.flags.writeable
    assert rows.flags.c_contiguous
    rows[:] = 0
    assert np.array_equal(cache.rows(np.arange(9)), whole)
    assert cache.rows(np.array([], np.int64)).shape == (0, 32, 48, 3)


def test_photos_are_decoded_once_for_any_list(
    tmp_path: Path, references: list[Reference], decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    fill(folder, references[:5])
    assert_whole(fill(folder, references[:5]), references[:5])
    assert len(decoded) == 5
    other = [references[8], references[2], references[6], references[0]]
    assert_whole(fill(folder, other), other)
    assert sorted(decoded[5:]) == ["0006.jpg", "0008.jpg"]
    # The same photo may occur in several rows, and under a path that is spelt otherwise.
    twice = [references[1], references[1], replace(references[7], id="again"), references[7]]
    assert_whole(fill(folder, twice), twice)
    assert decoded[7:] == ["0007.jpg"]
    monkeypatch.chdir(tmp_path)
    relative = replace(references[3], path=Path("photos/0003.jpg"))
    assert_whole(fill(folder, [relative]), [relative])
    assert len(decoded) == 8


def test_two_spellings_of_one_new_photo(
    tmp_path: Path, references: list[Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    both = [references[0], replace(references[0], path=Path("photos/0000.jpg")), references[1]]
    assert_whole(fill(tmp_path / "cache", both), both)
    assert_whole(fill(tmp_path / "cache", references), references)


def test_an_empty_list(tmp_path: Path) -> None:
    cache = fill(tmp_path / "cache", [])
    assert len(cache) == 0
    assert cache.rows(np.array([], np.int64)).shape == (0, 32, 48, 3)
    assert not (tmp_path / "cache").exists()


def test_a_photo_that_changed_is_decoded_again(tmp_path: Path, references: list[Reference], decoded: list[str]) -> None:
    before = fill(tmp_path / "cache", references)
    pixels = before.rows(np.arange(9))
    change(references[4].path)
    after = fill(tmp_path / "cache", references)
    assert decoded[9:] == ["0004.jpg"]
    assert_whole(after, references)
    assert not np.array_equal(after.rows(np.array([4])), pixels[4:5])
    # A run that goes on with the old photo keeps it.
    assert np.array_equal(before.rows(np.arange(9)), pixels)
    assert_whole(fill(tmp_path / "cache", references), references)
    assert len(decoded) == 10


def test_a_photo_that_changes_while_it_is_read_is_decoded_again(
    tmp_path: Path, references: list[Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_and_change(path: Path, *rest: object) -> NDArray[np.uint8]:
        pixels = read_image(path, *rest)
        if path == references[2].path:
            change(path)
        return pixels

    with monkeypatch.context() as patch:
        patch.setattr(photo_cache, "read_image", read_and_change)
        fill(tmp_path / "cache", references)
    assert_whole(fill(tmp_path / "cache", references), references)


@pytest.mark.usefixtures("two_at_once")
def test_progress_counts_every_reference_once(tmp_path: Path, references: list[Reference]) -> None:
    folder = tmp_path / "cache"
    for some, first in ((references[:4], 0), (references, 4), (references, 9), ([*references[:2]] * 3, 6)):
        steps: list[int] = []
        fill_photo_cache(folder, iter(some), PREPROCESSING, on_progress=steps.append)
        assert steps[0] == first
        assert sum(steps) == len(some)
    references[0].path.write_bytes(b"no photo")
    references[1].path.unlink()
    steps = []
    fill_photo_cache(folder, references * 2, PREPROCESSING, max_unreadable=4, on_progress=steps.append)
    assert sum(steps) == 18


def test_an_unreadable_photo_is_named(tmp_path: Path, references: list[Reference]) -> None:
    path = references[3].path
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ReferenceDataError) as caught:
        fill(tmp_path / "cache", references)
    assert str(caught.value).startswith(f"{path}: the image ")
    assert caught.value.code == "image_undecodable"
    assert "So far 1 photo is unreadable, none may be. Repair or remove what is named" in str(caught.value)
    cache = fill_photo_cache(tmp_path / "cache", references, PREPROCESSING, max_unreadable=1)
    assert_whole(cache, references[:3] + references[4:])
    assert [photo.path for photo in cache.unreadable] == [str(path)]


def test_missing_photos_are_all_named_before_any_is_decoded(
    tmp_path: Path, references: list[Reference], decoded: list[str]
) -> None:
    first, second = references[2].path, references[5].path
    first.unlink()
    second.unlink()
    gone = "the photo cannot be read (No such file or directory)"
    text = (
        f"{first}: {gone}; {second}: {gone}. So far 2 photos are unreadable, 1 may be. "
        "Repair or remove what is named, or allow more with --max-unreadable (a job: max_unreadable)."
    )
    with refused(ReferenceDataError, text, "too_many_unreadable"):
        fill_photo_cache(tmp_path / "cache", references, PREPROCESSING, max_unreadable=1)
    assert decoded == []
    cache = fill_photo_cache(tmp_path / "cache", references, PREPROCESSING, max_unreadable=2)
    assert_whole(cache, [reference for reference in references if reference.path not in (first, second)])


def test_damaged_photos_are_all_named_and_the_others_kept(
    tmp_path: Path, references: list[Reference], decoded: list[str]
) -> None:
    for reference in references[::4]:
        reference.path.write_bytes(b"GIF89a")
    with pytest.raises(
        ReferenceDataError, match=r"0000.jpg.*0004.jpg.*0008.jpg.* 3 photos are unreadable, none may be"
    ):
        fill(tmp_path / "cache", references)
    cache = fill_photo_cache(tmp_path / "cache", references, PREPROCESSING, max_unreadable=3)
    assert len(cache) == 6
    assert sorted(decoded[9:]) == ["0000.jpg", "0004.jpg", "0008.jpg"]


@pytest.mark.usefixtures("two_at_once")
def test_where_all_are_damaged_decoding_stops_early(tmp_path: Path, decoded: list[str]) -> None:
    rows = make_places(tmp_path, 60).rows
    for reference in rows:
        reference.path.write_bytes(b"GIF89a")
    text = r"0009.jpg: the image is a GIF, which is not accepted; and 2 more. So far 12 photos are unreadable"
    with pytest.raises(ReferenceDataError, match=text):
        fill(tmp_path / "cache", rows)
    assert len(decoded) < 30


def test_a_process_that_gets_a_copy_maps_the_same_file(tmp_path: Path, references: list[Reference]) -> None:
    cache = fill(tmp_path / "cache", references)
    sent = pickle.dumps(cache)
    assert len(sent) < 9 * 1000 < 9 * ROW_BYTES
    assert_whole(pickle.loads(sent), references)


@pytest.mark.parametrize("death", ["half of pixels", "half of table", "added"])
def test_after_a_kill_only_what_is_missing_is_decoded(
    tmp_path: Path, references: list[Reference], decoded: list[str], death: str
) -> None:
    folder = tmp_path / "cache"
    command = [
        sys.executable,
        "-m",
        "tests.training.photos.filling_process",
        str(tmp_path / "photos"),
        str(folder),
        death,
    ]
    killed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    kept = {"half of pixels": 4, "half of table": 5, "added": 6}[death]
    # The next run wants the photos the other way round, and an old one has changed.
    change(references[1].path)
    wanted = references[::-1]
    assert_whole(fill(folder, wanted), wanted)
    assert sorted(decoded) == sorted(["0001.jpg", *(f"{number:04d}.jpg" for number in range(kept, 9))])
    assert_whole(fill(folder, references), references)


def test_two_processes_fill_one_folder(tmp_path: Path, references: list[Reference]) -> None:
    """Each photo is decoded by one of them, and both see all."""
    folder = tmp_path / "cache"
    command = [sys.executable, "-m", "tests.training.photos.filling_process", str(tmp_path / "photos"), str(folder)]
    both = [
        subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ended = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    expected = sum(int(read_image(reference.path, PREPROCESSING).sum(dtype=np.int64)) for reference in references)
    assert {out for out, _ in ended} == {str(expected)}
    assert (store_folder(folder) / "pixels.raw").stat().st_size == 9 * ROW_BYTES


@pytest.mark.usefixtures("two_at_once")
def test_threads_fill_overlapping_lists(tmp_path: Path, references: list[Reference]) -> None:
    lists = [references[:6], references[3:], references[::-1], references[::2]]
    caches: dict[int, PhotoCache] = {}
    threads = [
        threading.Thread(target=lambda i=i: caches.update({i: fill(tmp_path / "cache", lists[i])})) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, some in enumerate(lists):
        assert_whole(caches[i], some)
    assert (store_folder(tmp_path / "cache") / "pixels.raw").stat().st_size == 9 * ROW_BYTES


def test_the_second_waits_with_a_note_and_decodes_nothing(
    tmp_path: Path, references: list[Reference], decoded: list[str]
) -> None:
    folder = tmp_path / "cache"
    store = PhotoStore.of(folder, PREPROCESSING)
    notes: list[str] = []
    waits, caches = threading.Event(), list[PhotoCache]()

    def second() -> None:
        def note(text: str) -> None:
            notes.append(text)
            waits.set()

        caches.append(fill_photo_cache(folder, references[:2], PREPROCESSING, on_wait=note))

    thread = threading.Thread(target=second)
    with store.adding():
        thread.start()
        assert waits.wait(20)
        paths = [reference.path for reference in references[:2]]
        store.add({PhotoIdentity.of(path): read_image(path, PREPROCESSING) for path in paths})
    thread.join()
    assert notes == [f"another process is decoding photos into {store.folder}: waiting for it"]
    assert decoded == []
    assert_whole(caches[0], references[:2])


def test_photos_that_are_all_there_are_served_while_another_process_decodes(
    tmp_path: Path, references: list[Reference]
) -> None:
    fill(tmp_path / "cache", references[:4])
    with PhotoStore.of(tmp_path / "cache", PREPROCESSING).adding():
        assert_whole(fill(tmp_path / "cache", references[:4]), references[:4])


@pytest.mark.usefixtures("two_at_once")
@pytest.mark.parametrize("name", ["pixels.raw", "photos.jsonl"])
def test_no_space_for_any_one_file(tmp_path: Path, references: list[Reference], decoded: list[str], name: str) -> None:
    """/dev/full takes the file's place after four photos: the kernel answers every write with ENOSPC."""
    store = PhotoStore.of(tmp_path / "cache", PREPROCESSING)
    file, aside, done = store.folder / name, tmp_path / "aside", 0

    def replace_it(more: int) -> None:
        nonlocal done
        done += more
        if done == 4:
            file.rename(aside)
            file.symlink_to("/dev/full")

    text = (
        f"{store.folder}: writing failed (No space left on device). "
        "Free some space or choose another folder, then run the command again; nothing was published."
    )
    with refused(StorageError, text, "storage"):
        fill_photo_cache(tmp_path / "cache", references, PREPROCESSING, on_progress=replace_it)
    aside.replace(file)
    decoded.clear()
    assert_whole(fill(tmp_path / "cache", references), references)
    assert sorted(decoded) == [f"{number:04d}.jpg" for number in range(4, 9)]


def test_no_space_for_the_table(tmp_path: Path, references: list[Reference]) -> None:
    store = PhotoStore.of(tmp_path / "cache", PREPROCESSING)
    store.folder.mkdir(parents=True)
    (store.folder / ".photos.jsonl.tmp").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="No space left on device"):
        fill(tmp_path / "cache", references)
    assert not (store.folder / "photos.jsonl").exists()
    assert_whole(fill(tmp_path / "cache", references), references)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 64 KiB: room for 13 photos of 4.5 KiB and the pages of the table."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a tmpfs needs root; the /dev/full tests ran all the same")
    yield folder
    gc.collect()
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_too_little_space_is_said_before_decoding(small_disk: Path, tmp_path: Path, decoded: list[str]) -> None:
    rows = make_places(tmp_path, 20).rows
    with pytest.raises(StorageError, match=r"20 decoded photos of 48x32 need 9.22e-05 GB, the disk has .* GB free"):
        fill(small_disk / "cache", rows)
    assert decoded == []


@pytest.mark.usefixtures("two_at_once")
def test_a_real_disk_that_fills_up_keeps_what_is_decoded(
    small_disk: Path, tmp_path: Path, references: list[Reference], decoded: list[str]
) -> None:
    """Another program takes the last byte after the first four photos."""
    ballast, served = small_disk / "ballast", 0

    def take_the_rest(done: int) -> None:
        nonlocal served
        served += done
        if served == 4:
            with ballast.open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    return

    with pytest.raises(StorageError, match="No space left on device"):
        fill_photo_cache(small_disk / "cache", references, PREPROCESSING, on_progress=take_the_rest)
    pixels = store_folder(small_disk / "cache") / "pixels.raw"
    assert pixels.stat().st_size == 4 * ROW_BYTES
    assert_whole(fill(small_disk / "cache", references[:4]), references[:4])
    ballast.unlink()
    decoded.clear()
    assert_whole(fill(small_disk / "cache", references), references)
    assert sorted(decoded) == [f"{number:04d}.jpg" for number in range(4, 9)]


def test_a_folder_that_is_none(tmp_path: Path, references: list[Reference]) -> None:
    file = tmp_path / "cache"
    file.write_text("notes")
    text = f"{file}: decoded photos are kept in a folder, and this is not one. Choose another folder with --cache."
    with refused(StorageError, text, "storage"):
        fill(file, references)
    text = (
        f"{store_path(file / 'below')}: writing failed (Not a directory). "
        "Choose another folder: a file has its name, or that of a folder above it."
    )
    with refused(StorageError, text, "storage"):
        fill(file / "below", references)
    assert file.read_text() == "notes"


def store_path(folder: Path) -> Path:
    return PhotoStore.of(folder, PREPROCESSING).folder


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path, references: list[Reference]) -> None:
    (tmp_path / "cache").mkdir(mode=0o555)
    with pytest.raises(StorageError, match="Choose a folder you may write to"):
        fill(tmp_path / "cache", references)


def test_a_table_that_is_not_ours(tmp_path: Path, references: list[Reference]) -> None:
    fill(tmp_path / "cache", references)
    folder = store_folder(tmp_path / "cache")
    (folder / "photos.jsonl").write_text("0 photos/0000.jpg\n")
    text = (
        f"{folder / 'photos.jsonl'}: this is not a table of decoded photos. "
        f"Delete the folder {folder}: its photos are decoded again."
    )
    with refused(ArtefactError, text, "artefact_damaged"):
        fill(tmp_path / "cache", references)


@pytest.mark.parametrize("line", [b"\0" * 40, b"[1, 2]", b'[-1, "a", 1, 1]', b'["0", "a", 1, 1]', b'[0, "photos', b"7"])
def test_a_damaged_line_costs_no_more_than_its_row(
    tmp_path: Path, references: list[Reference], decoded: list[str], line: bytes
) -> None:
    fill(tmp_path / "cache", references)
    table = store_folder(tmp_path / "cache") / "photos.jsonl"
    lines = table.read_bytes().split(b"\n")
    assert len(lines) == 11
    lines[3] = line
    table.write_bytes(b"\n".join(lines))
    assert_whole(fill(tmp_path / "cache", references), references)
    assert decoded[9:] == ["0002.jpg"]
    assert_whole(fill(tmp_path / "cache", references), references)
    assert len(decoded) == 10


def test_rows_that_were_cut_off_are_decoded_again_and_never_black(
    tmp_path: Path, references: list[Reference], decoded: list[str]
) -> None:
    """A cache that was copied in part: its table names rows that the file of pixels ends before."""
    fill(tmp_path / "cache", references[:7])
    os.truncate(store_folder(tmp_path / "cache") / "pixels.raw", 2 * ROW_BYTES + 17)
    fill(tmp_path / "cache", references[7:])
    assert_whole(fill(tmp_path / "cache", references), references)
    assert sorted(decoded[9:]) == [f"{number:04d}.jpg" for number in range(2, 7)]
