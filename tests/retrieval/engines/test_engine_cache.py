from dataclasses import replace
from pathlib import Path

import pytest

from retrieval.engines.compiled import EngineKey, default_engine_cache, default_profiles
from retrieval.errors import ParameterError

KEY = EngineKey("a" * 64, "10.13.3", "sm90", "fp16", default_profiles(32), "onnxruntime-1.31.1")


def test_the_folder_names_all_that_the_engine_depends_on() -> None:
    assert KEY.folder == Path("a" * 64) / "sm90-trt10.13.3-fp16-b1-1-1_2-16-32-onnxruntime-1.31.1"


@pytest.mark.parametrize(
    "change",
    [
        {"graph_sha256": "b" * 64},
        {"tensorrt_version": "10.14.0"},
        {"architecture": "sm89"},
        {"precision": "fp32"},
        {"profiles": default_profiles(16)},
        {"built_by": "tensorrt"},
    ],
)
def test_whatever_changes_no_old_engine_is_used(change: dict[str, object]) -> None:
    assert replace(KEY, **change).folder != KEY.folder


@pytest.mark.parametrize("version", ["", "../..", "10/13"])
def test_a_version_cannot_lead_out_of_the_cache(version: str) -> None:
    with pytest.raises(ParameterError, match="folder name"):
        replace(KEY, tensorrt_version=version)


def test_the_cache_is_where_the_operator_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/anna")
    monkeypatch.delenv("SIGHTFIX_ENGINE_CACHE", raising=False)
    assert default_engine_cache() == Path("/home/anna/.cache/sightfix/engines")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_engine_cache() == tmp_path / "sightfix" / "engines"
    monkeypatch.setenv("SIGHTFIX_ENGINE_CACHE", str(tmp_path / "engines"))
    assert default_engine_cache() == tmp_path / "engines"
