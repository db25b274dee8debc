"""Video files that the tests of this folder write, with PyAV. Every frame carries its number in its pixels."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 10
X264 = {"crf": "18", "preset": "veryfast", "threads": "1"}
VP9 = {"crf": "20", "b": "0", "cpu-used": "8", "threads": "1"}
MPEG4 = {"q": "3"}
BOX = 16
"""Side of the red square at the top left of every frame."""


def _blocks(height: int, width: int) -> list[tuple[slice, slice]]:
    """Two rows of five blocks, below the square."""
    ys, xs = np.linspace(BOX, height, 3).astype(int), np.linspace(0, width, 6).astype(int)
    return [(slice(ys[bit // 5], ys[bit // 5 + 1]), slice(xs[bit % 5], xs[bit % 5 + 1])) for bit in range(BITS)]


def picture(number: int, height: int = 64, width: int = 80) -> np.ndarray:
    """A frame ``(height, width, 3)``: a red square, and the number's bits as bright and dark blocks."""
    frame = np.full((height, width, 3), 90, np.uint8)
    frame[:BOX, :BOX] = (220, 30, 30)
    for bit, (rows, columns) in enumerate(_blocks(height, width)):
        frame[rows, columns] = 215 if number >> bit & 1 else 35
    return frame


def number(frame: np.ndarray) -> int:
    """Reads the number back from the middle of each block, after lossy coding."""
    value = 0
    for bit, (rows, columns) in enumerate(_blocks(*frame.shape[:2])):
        block = frame[rows, columns].astype(float)
        high, wide = block.shape[0] // 4, block.shape[1] // 4
        value |= int(block[high : block.shape[0] - high, wide : block.shape[1] - wide].mean() > 125) << bit
    return value


def numbers(frames: Sequence[np.ndarray]) -> list[int]:
    return [number(frame) for frame in np.asarray(frames)]


def write(
    path: Path,
    count: int = 60,
    codec: str = "libx264",
    size: tuple[int, int] = (64, 80),
    fps: int = 25,
    pixels: str = "yuv420p",
    options: dict[str, str] = X264,
    milliseconds: Sequence[int] | None = None,
    container: dict[str, str] | None = None,
    extra: Sequence[bytes] = (),
) -> None:
    """Encodes frames 0 to ``count - 1``; ``extra`` are packets behind them, each with a time of its own."""
    with av.open(str(path), "w", options=container or {}) as file:
        stream = file.add_stream(codec, rate=Fraction(fps), options=options)
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        if milliseconds is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        packets = []
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(picture(index, *size), format="rgb24")
            if milliseconds is not None:
                frame.pts, frame.time_base = milliseconds[index], Fraction(1, 1000)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        last = max(packet.pts for packet in packets)
        step, base = 1 / (fps * packets[0].time_base), packets[0].time_base
        for packet in packets:
            file.mux(packet)
        for place, payload in enumerate(extra, start=1):
            packet = av.Packet(payload)
            packet.stream, packet.time_base = stream, base
            packet.pts = packet.dts = int(last + place * step)
            file.mux(packet)


IRREGULAR = np.cumsum([0, *random.Random(0).choices([20, 40, 40, 100, 400], k=59)]).tolist()
"""When the frames of the files of variable rate are shown, milliseconds."""

GOOD: dict[str, tuple[int, Callable[[Path], None]]] = {
    # One group of pictures with B-frames; many; open ones, where frames before a key frame build on it.
    "long.mp4": (60, lambda p: write(p, options={**X264, "x264-params": "keyint=250:scenecut=0:bframes=3"})),
    "short.mp4": (60, lambda p: write(p, options={**X264, "x264-params": "keyint=12:scenecut=0:bframes=3"})),
    "open.mp4": (
        60,
        lambda p: write(
            p, options={**X264, "x264-params": "open-gop=1:keyint=12:min-keyint=6:scenecut=0:bframes=3:b-adapt=0"}
        ),
    ),
    "refresh.mp4": (
        60,
        lambda p: write(p, options={**X264, "x264-params": "intra-refresh=1:keyint=12:scenecut=0:bframes=0"}),
    ),
    "mpeg4.mp4": (60, lambda p: write(p, codec="mpeg4", options={**MPEG4, "g": "12", "bf": "2"})),
    "vp9.webm": (
        60,
        lambda p: write(p, codec="libvpx-vp9", options={**VP9, "g": "20", "auto-alt-ref": "1", "lag-in-frames": "16"}),
    ),
    "vp8.mkv": (
        60,
        lambda p: write(
            p,
            codec="libvpx",
            options={"crf": "10", "b": "2M", "g": "20", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "4"},
        ),
    ),
    "plain.avi": (60, lambda p: write(p, codec="mpeg4", options={**MPEG4, "g": "12", "bf": "0"})),
    "b_frames.avi": (60, lambda p: write(p, codec="mpeg4", options={**MPEG4, "g": "12", "bf": "2"})),
    "packed.avi": (60, lambda p: packed(p)),
    "h264.avi": (60, lambda p: write(p, options={**X264, "g": "24", "bf": "3"})),
    "mjpeg.avi": (12, lambda p: write(p, 12, codec="mjpeg", pixels="yuvj420p", options={})),
    "irregular.mp4": (60, lambda p: write(p, options={**X264, "g": "24"}, milliseconds=IRREGULAR)),
    "irregular.webm": (
        60,
        lambda p: write(p, codec="libvpx-vp9", options={**VP9, "g": "20"}, milliseconds=IRREGULAR),
    ),
    "repeated_times.webm": (60, lambda p: write(p, codec="libvpx-vp9", fps=3000, options={**VP9, "g": "20"})),
    "odd.mp4": (30, lambda p: write(p, 30, size=(67, 77), pixels="yuv444p")),
    "odd.webm": (30, lambda p: write(p, 30, codec="libvpx-vp9", size=(67, 77), options=VP9)),
    "odd.avi": (30, lambda p: write(p, 30, codec="mpeg4", size=(67, 77), options=MPEG4)),
    "ten_bit.mp4": (30, lambda p: write(p, 30, pixels="yuv420p10le")),
    "one.mp4": (1, lambda p: write(p, 1)),
    "one.webm": (1, lambda p: write(p, 1, codec="libvpx-vp9", options=VP9)),
    "three.mp4": (3, lambda p: write(p, 3)),
    "ünïcode und spaces.mp4": (12, lambda p: write(p, 12)),
    **{
        f"width_{width}.mp4": (12, lambda p, width=width: write(p, 12, size=(64, width)))  # type: ignore[misc]
        for width in (16, 24, 48, 72, 96)
    },
}
"""Files that both readers read, with the number of their frames: frame ``i`` shows ``i``."""


def packed(path: Path, count: int = 60) -> None:
    """MPEG-4 as DivX and Xvid wrote it to AVI: a P- and a B-frame in one packet, then an empty one."""
    encoder = av.CodecContext.create("mpeg4", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 80, 64, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25)
    encoder.options = {**MPEG4, "g": "12", "bf": "1", "b_strategy": "0"}
    frames = []
    for index in range(count):
        frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
        frame.pts, frame.time_base = index, Fraction(1, 25)
        frames += [(bytes(packet), packet.is_keyframe) for packet in encoder.encode(frame)]
    frames += [(bytes(packet), packet.is_keyframe) for packet in encoder.encode(None)]
    vop, user = b"\0\0\1\xb6", b"\0\0\1\xb2"
    chunks: list[tuple[bytes, bool]] = []
    for data, key in frames:
        if key:  # the name of an encoder that packs, in place of this one's
            start = data.find(user)
            end = data.find(b"\0\0\1", start + 4)
            data = data[:start] + user + b"DivX503b1393p" + data[end:]
        if data[data.find(vop) + 4] >> 6 == 2:  # a B-frame
            chunks[-1] = (chunks[-1][0] + data, chunks[-1][1])
            chunks.append((vop + bytes([0b01010000, 0b01011111]), False))  # a frame that is not coded
        else:
            chunks.append((data, key))
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 80, 64, "yuv420p"
        for index, (data, key) in enumerate(chunks):
            packet = av.Packet(data)
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 25), key
            packet.pts = packet.dts = index
            file.mux(packet)


def rotated(source: Path, path: Path, degrees: int) -> None:
    """A copy that asks to be shown turned clockwise."""
    path.write_bytes(source.read_bytes())
    cosine, sine = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    shown(path, cosine, sine, -sine, cosine)


def shown(path: Path, *matrix: int) -> None:
    """Writes the matrix of a video's track header, ``a, b, c, d`` (ISO/IEC 14496-12, 8.3.2)."""
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 20] = struct.pack(">5i", a, b, 0, c, d)
    path.write_bytes(data)


def trimmed(source: Path, path: Path, frames: int) -> None:
    """A copy whose edit list starts ``frames`` frames later, in the middle of a group of pictures."""
    data = bytearray(source.read_bytes())
    at = data.find(b"elst") + 12
    duration, start, rate = struct.unpack(">Iii", data[at : at + 12])
    data[at : at + 12] = struct.pack(">Iii", duration - 40 * frames, start + 512 * frames, rate)
    path.write_bytes(data)


END_OF_SEQUENCE = b"\0\0\0\1\x0a"
"""An H.264 unit that is valid, counts as a packet, and gives no frame."""

FILLER = b"\0\0\0\3\x0c\xff\x80"


def hollowed(path: Path, claimed: int = 140, held: int = 100) -> None:
    """A file of ``claimed`` frames, patched so that the packets behind ``held`` of them give none."""
    write(path, claimed, options={**X264, "x264-params": "keyint=20:min-keyint=20:scenecut=0:bframes=0"})
    data = bytearray(path.read_bytes())
    sizes = data.find(b"stsz") + 16  # the table of packet sizes (ISO/IEC 14496-12, 8.7.3)
    for place in range(held, claimed):
        data[sizes + 4 * place : sizes + 4 * place + 4] = struct.pack(">I", len(END_OF_SEQUENCE))
    path.write_bytes(data)
    with av.open(str(path)) as file:
        starts = [packet.pos for packet in file.demux(video=0) if packet.size]
    for at in starts[held:]:
        data[at : at + len(END_OF_SEQUENCE)] = END_OF_SEQUENCE
    path.write_bytes(data)


def flipped(source: Path, path: Path, frame: int) -> None:
    """A copy with a damaged packet: its bits are flipped behind its head, so that a decoder repairs what it can."""
    with av.open(str(source)) as file:
        at, size = [(packet.pos, packet.size) for packet in file.demux(video=0) if packet.size][frame]
    data = bytearray(source.read_bytes())
    for offset in range(size // 3, size, 5):
        data[at + offset] ^= 0x55
    path.write_bytes(data)


def sound(path: Path) -> None:
    """A file with sound only."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 20480), np.float32), format="fltp", layout="mono")
        frame.rate = 44100
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
