from pathlib import Path

import pytest
import torch
import torch.multiprocessing

from tests.training.objectives.batches import spread_out
from tests.training.objectives.two_processes import CASES, half, one_process
from training.objectives.objective import gather_rows, process_count, process_rank

Outcomes = dict[str, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcomes, list[Outcomes]]:
    """One process's outcomes, and those of each of two."""
    folder = tmp_path_factory.mktemp("two_processes")
    generator = torch.Generator().manual_seed(0)
    batch = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in {
            "x": (8, 5),
            "y": (8, 5),
            "negatives": (8, 2, 5),
            "target_x": (8, 6),
            "target_y": (8, 6),
        }.items()
    }
    # 15 m apart: each place is masked for its neighbours, also across the border between the processes.
    batch["x_positions"], batch["y_positions"] = spread_out(8, apart_m=15.0), spread_out(8, apart_m=15.0, start_m=4.0)
    torch.multiprocessing.spawn(half, args=(batch, str(folder)), nprocs=2)
    return one_process(batch), [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", list(CASES))
def test_two_processes_give_the_loss_and_gradients_of_one(name: str, outcomes: tuple[Outcomes, list[Outcomes]]) -> None:
    alone, both = outcomes
    for ours in both:
        assert ours[name].keys() == alone[name].keys()
        for key, expected in alone[name].items():
            torch.testing.assert_close(ours[name][key], expected, rtol=1e-9, atol=1e-12, equal_nan=True)


def test_alone_nothing_is_gathered() -> None:
    rows = torch.randn(3, 2)
    assert gather_rows(rows) is rows
    assert (process_rank(), process_count()) == (0, 1)
