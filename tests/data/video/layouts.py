"""Data sets of a few real videos in the layouts that they are distributed in; frames carry their numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

FILES = ("long.mp4", "short.mp4", "vp9.webm", "plain.avi", "irregular.mp4", "odd.mp4", "three.mp4", "one.mp4")
"""Of `media.GOOD`, one kind each."""


def put(videos: Path, kind: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(videos / kind, path)


def lists(videos: Path, root: Path) -> Path:
    """``clips/`` with train.txt (8 videos of all kinds), val.txt (4) and test.txt (5) of two classes."""
    for split, count in (("train", 8), ("val", 4), ("test", 5)):
        lines = []
        for index in range(count):
            kind = FILES[index]
            name = f"clips/{split} {index}{Path(kind).suffix}"
            put(videos, kind, root / name)
            lines.append(f"{name} {index % 2}\n")
        (root / f"{split}.txt").write_text("".join(lines))
    return root


KINETICS = {
    "train": [("riding a bike", "-0abcdefghi", 3, 13), ("yoga", "AbC_defghij", 12, 22), ("yoga", "zzzzzzzzzzz", 0, 10)],
    "val": [("yoga", "vvvvvvvvvvv", 5, 15), ("riding a bike", "wwwwwwwwwww", 100, 110)],
    "test": [("riding a bike", "ttttttttttt", 1, 11)],
}


def kinetics(videos: Path, root: Path, folders: str) -> Path:
    """Official lists, and files ``folders`` "flat", in folders with "spaces" or "underscores"."""
    (root / "annotations").mkdir(parents=True)
    for split, rows in KINETICS.items():
        lines = ["label,youtube_id,time_start,time_end,split"]
        for number, (label, name, start, end) in enumerate(rows):
            kind = FILES[number]
            file = f"{name}_{start:06d}_{end:06d}{Path(kind).suffix}"
            folder = {"flat": "", "spaces": label, "underscores": label.replace(" ", "_")}[folders]
            put(videos, kind, root / split / folder / file)
            quoted = f'"{label}"' if number % 2 else label
            lines.append(f"{quoted},{name},{start},{end},{split}")
        (root / "annotations" / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return root


SENTENCES = ("Moving [something] up", "Putting [something] onto [something]", "Tearing [something]")
ANSWERS = {"9": SENTENCES[1], "10": SENTENCES[0]}


def something(videos: Path, root: Path, suffix: str = ".webm") -> Path:
    """labels.json, train.json, validation.json, test.json without templates, test-answers.csv and videos."""
    root.mkdir(exist_ok=True, parents=True)
    plain = {sentence.replace("[", "").replace("]", ""): str(i) for i, sentence in enumerate(SENTENCES)}
    (root / "labels.json").write_text(json.dumps(plain))
    ids = {"train": ["1", "2", "3", "4"], "validation": ["7", "8"]}
    for split, names in ids.items():
        entries = [
            {"id": name, "label": "x", "template": SENTENCES[int(name) % 3], "placeholders": ["x"]} for name in names
        ]
        (root / f"{split}.json").write_text(json.dumps(entries))
    (root / "test.json").write_text(json.dumps([{"id": name} for name in ANSWERS]))
    answers = [f"{name};{sentence.replace('[', '').replace(']', '')}" for name, sentence in ANSWERS.items()]
    (root / "test-answers.csv").write_text("\n".join(answers) + "\n")
    kind = {".webm": "vp9.webm", ".mp4": "long.mp4"}[suffix]
    for name in ("1", "2", "3", "4", "7", "8", *ANSWERS):
        put(videos, kind, root / "videos" / f"{name}{suffix}")
    return root


def hmdb51(videos: Path, root: Path, suffix: str = ".avi") -> Path:
    """Two classes, three splits; names with the odd characters of the real ones."""
    parts = {1: "1102", 2: "2110", 3: "0211"}
    for name in ("brush_hair", "wave"):
        for split, marks in parts.items():
            lines = []
            for number, mark in enumerate(marks):
                stem = f"Tom's_{name}_(a&b);[x]_#{number}_u_nm_np1_ba_goo_0"
                lines.append(f"{stem}.avi {mark} ")
                put(videos, "plain.avi" if suffix == ".avi" else "long.mp4", root / "videos" / name / f"{stem}{suffix}")
            file = root / "testTrainMulti_7030_splits" / f"{name}_test_split{split}.txt"
            file.parent.mkdir(exist_ok=True)
            file.write_text("\n".join(lines) + "\n")
    return root


def ucf101(videos: Path, root: Path) -> Path:
    """Three classes, three splits."""
    classes = ("ApplyEyeMakeup", "Archery", "YoYo")
    folder = root / "ucfTrainTestlist"
    folder.mkdir(parents=True)
    (folder / "classInd.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(classes, start=1)))
    for split in (1, 2, 3):
        train, test = [], []
        for number, name in enumerate(classes, start=1):
            for group in (1, 2, 3):
                file = f"{name}/v_{name}_g{group:02d}_c01.avi"
                put(videos, "plain.avi", root / "UCF-101" / file)
                if group == split:
                    test.append(f"{file}\r\n")
                else:
                    train.append(f"{file} {number}\r\n")
        (folder / f"trainlist{split:02d}.txt").write_text("".join(train))
        (folder / f"testlist{split:02d}.txt").write_text("".join(test))
    return root
