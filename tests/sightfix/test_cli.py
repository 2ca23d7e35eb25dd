"""The command line as a newcomer meets it."""

import json
import subprocess
import sys
from pathlib import Path

from service.answer import LocalizeAnswer
from tests.conftest import PublishedPlaces
from tests.forked import sightfix


def write_csv(published: PublishedPlaces, path: Path) -> Path:
    lines = ["path,lat,lon,heading"]
    for row in published.places.rows:
        assert row.position is not None
        lines.append(f"{row.path},{row.position.lat},{row.position.lon},{row.heading_deg}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_help_lists_every_command() -> None:
    """Started as its users start it; the other tests fork it."""
    done = subprocess.run([sys.executable, "-m", "sightfix.cli", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    for command in ("index", "inspect", "serve", "localize", "evaluate", "demo"):
        assert command in done.stdout


def test_index_then_localize_finds_the_photo(published: PublishedPlaces, tmp_path: Path) -> None:
    table = write_csv(published, tmp_path / "refs.csv")
    indexed = sightfix("index", f"csv:{table}", "--name", "places", folder=tmp_path)
    assert indexed.returncode == 0, indexed.stderr
    assert "published 12 references as places, version" in indexed.stdout
    assert "Next: sightfix serve --index places" in indexed.stdout
    photo = published.places.rows[3].path
    shown = sightfix("localize", str(photo), folder=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("LOCATED  48.000000, 11.004032  ± 5 m (68 %, not calibrated)")
    assert "0003.jpg" in shown.stdout
    answer = LocalizeAnswer.model_validate_json(sightfix("localize", str(photo), "--json", folder=tmp_path).stdout)
    assert answer.matches[0].score > 0.999
    assert len(answer.matches) == 5


def test_a_geo_prior_can_be_given(published: PublishedPlaces) -> None:
    photo = str(published.places.rows[4].path)
    done = sightfix("localize", photo, "--indexes", str(published.indexes), "--near", "48.0,11.0,150", "--json")
    assert {match["reference_id"] for match in json.loads(done.stdout)["matches"]} == {
        "photos/0000.jpg",
        "photos/0001.jpg",
    }


def test_errors_have_no_traceback_and_name_the_remedy(published: PublishedPlaces, tmp_path: Path) -> None:
    photo = str(published.places.rows[4].path)
    cases = {
        ("localize", photo, "--index", "nowhere", "--indexes", str(published.indexes)): (
            f"error {published.indexes}: there is no place index 'nowhere'. Choose among places.\n"
        ),
        ("localize", photo, "--near", "48.0", "--indexes", str(published.indexes)): (
            "error --near '48.0' is not three numbers. Give LAT,LON,RADIUS_M, such as 55.6983,13.1951,500.\n"
        ),
        ("localize", photo, "--server", "http://127.0.0.1:9", "--index", "places"): (
            "error both --server and --index are given. Ask a server or an index, not both.\n"
        ),
        ("localize", str(tmp_path / "none.jpg"), "--indexes", str(published.indexes)): (
            f"error {tmp_path / 'none.jpg'}: the photo cannot be read (No such file or directory). "
            "Check the path and its permissions.\n"
        ),
        ("localize", photo, "--top-k", "0", "--indexes", str(published.indexes)): (
            "error top_k 0 is outside [1, 100]. Ask for 1 to 100 matches.\n"
        ),
        ("index", str(tmp_path), "--name", "../escape"): (
            "error '../escape' cannot be the name of a place index. "
            "Use up to 64 letters, digits, '.', '_' and '-', starting with a letter or digit.\n"
        ),
        (
            "index",
            str(tmp_path),
            "--storage",
            "int4",
        ): "error --storage 'int4' is unknown. Choose among fp32, fp16, int8.\n",
    }
    for arguments, message in cases.items():
        done = sightfix(*arguments)
        assert (done.returncode, done.stderr) == (1, message), arguments


def test_brackets_in_a_path_are_not_taken_for_markup(tmp_path: Path) -> None:
    folder = tmp_path / "[red]photos[1]"
    folder.mkdir()
    done = sightfix("index", str(folder))
    assert done.returncode == 1
    assert done.stderr.startswith(f"error {folder}: there is no photo in this folder.")


def test_a_bundle_other_than_the_indexs_is_refused(published: PublishedPlaces, tmp_path: Path) -> None:
    import shutil

    from retrieval.bundle import BundleManifest, bundle_fingerprint, default_bundle_folder

    other = tmp_path / "bundle"
    shutil.copytree(default_bundle_folder(), other)
    manifest = BundleManifest.read(other)
    preprocessing = manifest.preprocessing.model_copy(update={"fit": "crop"})
    fingerprint = bundle_fingerprint(manifest.files[manifest.graphs["fp32"]], preprocessing)
    manifest.model_copy(update={"preprocessing": preprocessing, "fingerprint": fingerprint, "name": "other"}).write(
        other
    )
    photo = str(published.places.rows[4].path)
    done = sightfix("localize", photo, "--indexes", str(published.indexes), "--bundle", str(other))
    assert done.returncode == 1
    assert f"the index was described with bundle {manifest.name} ({manifest.fingerprint[:12]})" in done.stderr
    assert f"not with other ({fingerprint[:12]})" in done.stderr
    assert "Leave out --bundle, for the index holds its own; or index the photos again with this one." in done.stderr
