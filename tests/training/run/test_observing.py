"""The logs of a run: rows appended, and taken out where a resumed run trains the same steps again."""

from pathlib import Path

from training.run.observing import CsvLog, RunLog


def test_rows_are_appended_under_the_columns_of_the_first(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "steps.csv", 0)
    log.write({"epoch": 0.5, "step": 1, "loss": 1.25})
    log.write({"epoch": 1.0, "step": 2, "loss": 1 / 3, "other": 9})
    assert (tmp_path / "steps.csv").read_text().splitlines() == ["epoch,step,loss", "0.5,1,1.25", "1,2,0.333333333"]


def test_a_resumed_run_goes_on_after_its_step(tmp_path: Path) -> None:
    path = tmp_path / "steps.csv"
    path.write_text("epoch,step,loss\r\n0.1,1,5\r\n0.2,2,4\r\n0.3,3,3\r\n")
    log = CsvLog(path, 2)
    log.write({"epoch": 0.3, "step": 3, "loss": 3.5})
    assert path.read_text().splitlines() == ["epoch,step,loss", "0.1,1,5", "0.2,2,4", "0.3,3,3.5"]


def test_a_run_killed_before_its_first_checkpoint_begins_its_tables_anew(tmp_path: Path) -> None:
    for _ in range(2):
        with RunLog(tmp_path, 0) as log:
            log.epoch(0, 0, {"recall_at_1": 0.5})
    assert (tmp_path / "epochs.csv").read_text().splitlines() == ["epoch,step,recall_at_1", "0,0,0.5"]


def test_a_row_that_a_crash_cut_short_is_taken_out(tmp_path: Path) -> None:
    path = tmp_path / "steps.csv"
    path.write_text("epoch,step,loss\r\n0.1,1,5\r\n0.2,2")
    CsvLog(path, 7).write({"epoch": 0.2, "step": 2, "loss": 4})
    assert path.read_text().splitlines() == ["epoch,step,loss", "0.1,1,5", "0.2,2,4"]


def test_an_empty_file_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "steps.csv"
    path.write_text("")
    CsvLog(path, 7).write({"epoch": 0.2, "step": 2})
    assert path.read_text().splitlines() == ["epoch,step", "0.2,2"]


def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(tmp_path, 0) as log:
        log.step(0.5, 1, {"loss": 2.0})
        log.epoch(1, 2, {"recall_at_1": 0.5})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("step/loss")] == [(1, 2.0)]
    assert [(event.step, event.value) for event in events.Scalars("epoch/recall_at_1")] == [(2, 0.5)]
