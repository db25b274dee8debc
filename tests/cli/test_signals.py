"""A run that a signal ends: its exit status, its last line, and that the same process can run on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl

from lightning_petl import cli

ROOT = Path(__file__).parents[2]
CONFIG = ["--config", str(ROOT / "configs/quickstart.yaml"), "--trainer.enable_progress_bar", "false"]


class Signal(pl.Callback):
    """Sends this process a signal in the middle of an epoch, of training or of testing.

    Args:
        number: The signal.
        epoch: The epoch of training, or -1 to wait for a test.
    """

    def __init__(self, number: int, epoch: int) -> None:
        self.number, self.epoch = number, epoch

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, i: int) -> None:
        if i == 1 and trainer.current_epoch == self.epoch:
            os.kill(os.getpid(), self.number)

    def on_test_batch_start(self, *_: object) -> None:
        if self.epoch < 0:
            os.kill(os.getpid(), self.number)


def options(folder: Path, number: int, epoch: int) -> list[str]:
    callback = {"class_path": f"{__name__}.Signal", "init_args": {"number": int(number), "epoch": epoch}}
    config = folder / "signal.json"
    config.write_text(f'{{"trainer": {{"callbacks": [{callback}]}}}}'.replace("'", '"'))
    return [*CONFIG, "--config", str(config), "--trainer.default_root_dir", str(folder / "run")]


@pytest.mark.parametrize(
    ("number", "status", "told"),
    [(signal.SIGTERM, 143, "SIGTERM ended fit"), (signal.SIGINT, 130, "fit was interrupted")],
)
def test_a_signal_in_a_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int, status: int, told: str
) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    stopped = options(tmp_path, number, epoch=1)
    assert cli.run(["fit", *stopped, "--trainer.max_epochs", "3"]) == status
    run = tmp_path / "run"
    last = run / "checkpoints/last.ckpt"
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1] == f"lightning-petl: error: {told} [{run}] - go on with --ckpt_path {last}"
    assert not (run / "results.json").exists()
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before
    # The line says what to do, and that works, in the same process.
    again = [*CONFIG, "--trainer.default_root_dir", str(run), "--trainer.max_epochs", "3", "--ckpt_path", str(last)]
    assert cli.run(["fit", *again]) == 0
    assert next(run.glob("version_1/adapter.safetensors")).stat().st_size


def test_a_signal_before_the_first_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["fit", *options(tmp_path, signal.SIGTERM, epoch=0), "--trainer.max_epochs", "3"]) == 143
    last_line = capsys.readouterr().err.strip().splitlines()[-1]
    assert last_line == f"lightning-petl: error: SIGTERM ended fit [{tmp_path / 'run'}]"


def test_a_signal_in_a_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["test", *options(tmp_path, signal.SIGTERM, epoch=-1), "--data.batch_size", "16"]) == 143
    assert "SIGTERM ended test" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_from_another_process(tmp_path: Path, number: int, status: int) -> None:
    options = ["--trainer.default_root_dir", str(tmp_path / "run"), "--trainer.max_epochs", "5000"]
    program = [sys.executable, "-m", "lightning_petl", "fit", *CONFIG, *options]
    with subprocess.Popen(program, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        until = time.monotonic() + 120
        while not (tmp_path / "run/checkpoints/last.ckpt").exists():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
    assert process.returncode == status
    assert told.strip().splitlines()[-1].startswith("lightning-petl: error: ")
