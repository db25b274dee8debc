"""Something-Something v2 (arXiv 1706.04261): labels as sentences with placeholders, in JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, Unpack

from lightning_petl.data.folder_tree import require_folder
from lightning_petl.data.limits import DEFAULT_LIMITS, ImageLimits
from lightning_petl.data.notices import listed
from lightning_petl.data.video.files import VideoFolder
from lightning_petl.data.video.module import VideoDataModule, VideoOptions
from lightning_petl.data.video.splits import Entry, Split, locate, read_lines
from lightning_petl.errors import DataError

_ID = re.compile(r"[\w-]+", re.ASCII)
_WHOLE = re.compile(r"[0-9]{1,9}")


class SomethingSomethingV2Data(VideoDataModule):
    """Something-Something v2, and what is written in its layout, such as `lightning-petl data make moving-digits`.

    ``labels`` maps each sentence to its number. A list names videos by ``id``, with the sentence as ``template``, in
    which placeholders stand in brackets. Files are ``<videos>/<id>`` with the suffix of the copy at hand, WebM or MP4.
    The official test list has no templates: its labels are in ``test_answers``, and without that file it serves
    prediction.

    Clips are not flipped: "left to right" would become "right to left".

    Args:
        root: Folder of the data set; everything else is relative to it.
        train: List of the training split.
        val: List of the validation split, or null.
        test: List of the test split, or null.
        labels: Number of each sentence.
        test_answers: ``id;sentence`` a line for the test list, or null where the list has templates or none are known.
        videos: Folder of all videos.
        predict: Folder of videos to predict, any tree, or one video, below ``root`` unless absolute; null predicts the
            test split.
        limits: Sizes of frames to refuse before decoding.
        **options: See `VideoOptions`.

    Raises:
        DataError: A file or videos are missing, a list does not read, has unknown sentences, or training shares files
            with another split.
        ConfigError: An option is out of its range.
    """

    flips = False
    give_labels = "set data.test_answers to the file with the sentences of its videos"

    def __init__(
        self,
        root: str,
        train: str = "train.json",
        val: str | None = "validation.json",
        test: str | None = "test.json",
        labels: str = "labels.json",
        test_answers: str | None = None,
        videos: str = "videos",
        predict: str | None = None,
        limits: ImageLimits = DEFAULT_LIMITS,
        **options: Unpack[VideoOptions],
    ) -> None:
        super().__init__(limits=limits, **options)
        base = Path(root).expanduser()
        require_folder(base, "data.root")
        require_folder(base / videos, "data.videos")
        numbers, folder = _numbers(base / labels), VideoFolder(base / videos)
        answers = {} if test_answers is None else _answers(base / test_answers)
        splits: dict[str, Split] = {}
        for name, file in (("train", train), ("val", val), ("test", test)):
            if file is not None:
                known = answers if name == "test" else {}
                entries = _entries(base / file, f"data.{name}", numbers, known, name == "test" and test_answers is None)
                splits[name] = locate(entries, folder, base / file, f"data.{name}")
        self.fill(splits, sorted(numbers, key=numbers.__getitem__), predict=None if predict is None else base / predict)


def _json(file: Path, option: str) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=lambda pairs: _object(pairs, file))
    except OSError as error:
        raise DataError(
            f"the file {file} cannot be read: {error.strerror}", where=option, fix=f"correct {option}"
        ) from error
    except ValueError as error:
        raise DataError(f"the file is no JSON: {error}", where=str(file), fix=f"correct {option}") from error


def _object(pairs: list[tuple[str, Any]], file: Path) -> dict[str, Any]:
    """An object of JSON, in which the last of two values of one name would replace the first."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            _refuse(f"{name!r} is there twice in one object", file)
        found[name] = value
    return found


def _numbers(file: Path) -> dict[str, int]:
    """The number of each sentence, which run from 0."""
    found = _json(file, "data.labels")
    if not isinstance(found, dict) or not found:
        _refuse("the file maps no sentences to numbers", file)
    for sentence, number in found.items():
        whole = isinstance(number, int | str) and _WHOLE.fullmatch(str(number))
        if not whole:
            _refuse(f"a sentence's number is none: {number!r} of {sentence!r}", file)
    numbers = {sentence: int(number) for sentence, number in found.items()}
    if sorted(numbers.values()) != list(range(len(numbers))):
        _refuse(f"the numbers of {len(numbers)} sentences are not 0 to {len(numbers) - 1}", file)
    return numbers


def _entries(
    file: Path, option: str, numbers: Mapping[str, int], answers: Mapping[str, str], may_lack: bool
) -> list[Entry]:
    """Reads a list. ``may_lack`` is for the test list, whose sentences may be unknown."""
    found = _json(file, option)
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        _refuse("the file is no list of videos", file)
    entries: list[Entry] = []
    faults: list[str] = []
    for place, entry in enumerate(found):
        name = str(entry.get("id", ""))
        template, answer = entry.get("template"), answers.get(name)
        sentence = answer or template
        plain = _plain(sentence)
        if not _ID.fullmatch(name):
            faults.append(f"entry {place} has no id")
        elif answer and template is not None and _plain(template) != plain:
            faults.append(f"{name}: its template is {_plain(template)!r}, and the answers say {plain!r}")
        elif sentence is None and not may_lack:
            faults.append(f"{name} has no template")
        elif sentence is not None and plain not in numbers:
            faults.append(f"{name}: {plain!r} is not in the labels")
        else:
            entries.append(Entry((name,), -1 if sentence is None else numbers[plain]))
    if faults:
        _refuse(f"{len(faults)} bad entries: {listed(faults, '; ', shown=5)}", file)
    bare = [entry.names[0] for entry in entries if entry.label < 0]
    if 0 < len(bare) < len(entries):
        _refuse(f"some of the videos have a template and some have none, {bare[0]} first", file)
    return entries


def _plain(sentence: object) -> str:
    """A sentence without the brackets of its placeholders, as the labels have it."""
    return re.sub(r"[\[\]]", "", str(sentence))


def _answers(file: Path) -> dict[str, str]:
    """The sentence of each video, of lines ``id;sentence``."""
    found: dict[str, str] = {}
    places: dict[str, int] = {}
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        name, separator, sentence = (part.strip() for part in line.partition(";"))
        if not separator:
            _refuse(f"line {number} is not `id;sentence`", file)
        sentence = sentence.strip('"')
        if found.setdefault(name, sentence) != sentence:
            _refuse(f"line {number} says {sentence!r} of {name}, and line {places[name]} {found[name]!r}", file)
        places.setdefault(name, number)
    return found


def _refuse(what: str, file: Path) -> NoReturn:
    raise DataError(what, where=str(file), fix="correct the file, or take the one of the data set")
