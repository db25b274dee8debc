"""Readers that a test lets hang, crash, or ask for too much, in the process that decodes."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

import numpy as np

from lightning_petl.data.video.pyav_reader import PyAVReader


class HangingReader(PyAVReader):
    """Hangs in native code that holds the interpreter's lock, on files named hang*; dies on crash*; the rest it reads.

    No thread and no handler of a signal runs while it hangs.
    """

    name = "hanging"

    def _read(self, indices: list[int]) -> np.ndarray:
        name = Path(self.path).name
        if name.startswith("hang"):
            ctypes.PyDLL(None).sleep(1000)
        if name.startswith("crash"):
            os.kill(os.getpid(), signal.SIGSEGV)
        return super()._read(indices)
