from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.retrieval.refusal import refused
from training.backbones import WeightsFileError, WeightsMismatchError, load_strictly, read_weights

FORMATS = "Give a .safetensors file, or a .pth, .pt or .bin file that holds nothing but tensors."


def unreadable(text: str) -> AbstractContextManager[None]:
    return refused(WeightsFileError, text, "weights_unreadable")


def test_a_fitting_file_is_loaded() -> None:
    source, target = nn.Linear(2, 3), nn.Linear(2, 3)
    load_strictly(target, source.state_dict(), where=Path("a.pth"))
    assert torch.equal(source.weight, target.weight)


def test_every_fault_is_listed_and_nothing_is_changed() -> None:
    target = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    tensors = {"0.weight": torch.ones(3, 2), "0.bias": torch.ones(4), "1.weight": torch.ones(1, 3), "fc": torch.ones(1)}
    text = (
        "a.pth: the weights do not fit: missing 1.bias; unexpected fc; of another shape 0.bias (4,) instead of (3,). "
        "Look."
    )
    with refused(WeightsMismatchError, text, "weights_mismatch"):
        load_strictly(target, tensors, where=Path("a.pth"), remedy="Look")
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())


def test_a_long_list_is_cut() -> None:
    tensors = {f"x{i}": torch.ones(1) for i in range(11)}
    text = "a.pth: the weights do not fit: unexpected x0, x1, x2, x3, x4, x5, x6, x7 and 3 more."
    with refused(WeightsMismatchError, text, "weights_mismatch"):
        load_strictly(nn.Identity(), tensors, where=Path("a.pth"))


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_torch_files_are_read_with_and_without_wrapper(tmp_path: Path, suffix: str, wrapper: str | None) -> None:
    tensors = {"a": torch.arange(3.0)}
    torch.save({wrapper: tensors, "epoch": 3} if wrapper else tensors, tmp_path / f"w{suffix}")
    assert torch.equal(read_weights(tmp_path / f"w{suffix}")["a"], tensors["a"])


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file({"a": torch.arange(3.0)}, tmp_path / "w.safetensors")
    assert read_weights(tmp_path / "w.safetensors")["a"].tolist() == [0, 1, 2]


class Evil:
    """What a pickle must not be able to bring."""


def test_a_pickle_with_more_than_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": Evil()}, path)
    with unreadable(f"{path}: the file is damaged or holds more than weights. {FORMATS}"):
        read_weights(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"", b"not weights at all"])
def test_a_damaged_file_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with unreadable(f"{path}: the file is damaged or holds more than weights. {FORMATS}"):
        read_weights(path)


def test_other_content_kinds_and_missing_files_are_refused(tmp_path: Path) -> None:
    torch.save([torch.ones(1)], tmp_path / "w.pth")
    with unreadable(f"{tmp_path / 'w.pth'}: the file is no dictionary of tensors. {FORMATS}"):
        read_weights(tmp_path / "w.pth")
    (tmp_path / "w.onnx").touch()
    with unreadable(f"{tmp_path / 'w.onnx'}: a .onnx file is not read as weights. {FORMATS}"):
        read_weights(tmp_path / "w.onnx")
    for name in ("gone.pth", "gone.safetensors"):
        path = tmp_path / name
        with unreadable(f"{path}: the weights cannot be read (No such file or directory). Check the path."):
            read_weights(path)
