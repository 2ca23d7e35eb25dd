"""Two processes on the CPU: a signal to one of them stops both."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
TWO_PROCESSES = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path

import torch

from tests.training.small_encoder import small_recipe
from tests.training.walks import make_walks
from training.run.device import DeviceSettings
from training.run.observing import RunObserver
from training.run.train import TrainingPhotos, TrainSettings, train
from training.run.training_run import TrainingStoppedError

rank, folder = os.environ.get("LOCAL_RANK", "0"), Path(sys.argv[1])


class Signalled(RunObserver):
    @contextmanager
    def work(self, what, total, unit="photos"):
        def advance(count):
            if what.startswith("Epoch") and rank == "1":
                signal.raise_signal(signal.SIGTERM)

        yield advance


torch.set_num_threads(1)
recipe = small_recipe("training.pairs=4", "training.epochs=2", "objective.head_width=32")
photos = TrainingPhotos("walks", make_walks(folder / f"walks-{rank}", 24))
settings = TrainSettings(folder / f"cache-{rank}", DeviceSettings("cpu", processes=2))
try:
    train(recipe, photos, folder / "run", settings, Signalled())
except TrainingStoppedError as stopped:
    (folder / f"stopped-{rank}").write_text(str(stopped))
"""


def test_a_signal_to_one_process_stops_both_and_saves(tmp_path: Path) -> None:
    script = tmp_path / "two_processes.py"
    script.write_text(TWO_PROCESSES)
    started = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = started.communicate(timeout=120)
    finally:
        if started.poll() is None:  # both wait for each other: the group is theirs alone
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()
    assert started.returncode == 0, errors
    messages = [(tmp_path / f"stopped-{rank}").read_text() for rank in (0, 1)]
    assert messages[0] == messages[1]
    assert "stopped by SIGTERM after epoch 0, batch 1; the run is saved" in messages[0]
    assert (tmp_path / "run" / "last" / "manifest.json").exists()
