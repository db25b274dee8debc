"""The digit scenes: masks that follow from the plan alone, splits that share nothing, files in ADE20K's layout."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_petl import cli
from lightning_petl.data import ADE20KData
from lightning_petl.demo import digit_scenes
from lightning_petl.demo.digits import load_digits, split
from lightning_petl.errors import ConfigError

SIDE = 64
IMAGES, LABELS = load_digits((5, 6, 7, 8, 9))
POOL = split(LABELS)["train"]
PHOTOS = digit_scenes.load_photos("train")


def planned(seed: int, vary: float = 0) -> digit_scenes.Plan:
    return digit_scenes.plan(POOL, PHOTOS, SIDE, np.random.default_rng(seed), vary=vary)


def drawn(scene: digit_scenes.Plan) -> tuple[np.ndarray, np.ndarray]:
    return digit_scenes.draw(scene, IMAGES, LABELS, PHOTOS, SIDE)


def corners(note: digit_scenes.Note) -> np.ndarray:
    """The note's corners ``(4, 2)``, as y and x."""
    steps = np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]]) * note.size / 2
    turn = np.array([[np.cos(note.angle), -np.sin(note.angle)], [np.sin(note.angle), np.cos(note.angle)]])
    return steps @ turn + (note.y, note.x)


def inside(note: digit_scenes.Note) -> np.ndarray:
    """Which pixels' centres are in the note, by the sides that they are on: another way than the module's."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    points = corners(note)
    found = np.ones((SIDE, SIDE), dtype=bool)
    for (y0, x0), (y1, x1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        found &= (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) > 0
    return found


def test_masks_are_what_the_plan_says() -> None:
    for seed in range(40):
        scene = planned(seed)
        wanted = np.ones((SIDE, SIDE), dtype=np.uint8)
        for note in scene.notes:
            area = inside(note)
            assert area.sum() == pytest.approx(note.size**2, abs=2 * note.size)
            wanted[area] = LABELS[note.digit] + 2
        np.testing.assert_array_equal(drawn(scene)[1], wanted)


def test_the_photograph_is_untouched_around_the_notes() -> None:
    for seed in range(10):
        scene = planned(seed)
        picture, mask = drawn(scene)
        part = PHOTOS[scene.photo][scene.top : scene.top + scene.side, scene.left : scene.left + scene.side]
        ground = np.asarray(Image.fromarray(part).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(picture[mask == 1], ground[mask == 1])
        assert (np.abs(picture.astype(int) - ground).max(axis=2) > 0)[mask > 1].mean() > 0.95


def test_notes_are_inside_and_hide_little_of_each_other() -> None:
    counts = []
    for seed in range(200):
        scene = planned(seed)
        areas = [inside(note) for note in scene.notes]
        if len(areas) == 2:
            assert (areas[0] & areas[1]).sum() < 0.3 * areas[0].sum()
        assert all((corners(note) >= -1e-9).all() and (corners(note) <= SIDE + 1e-9).all() for note in scene.notes)
        counts.append(len(areas))
    assert counts.count(1) > 50
    assert counts.count(2) > 4


def test_an_upright_note_shows_the_handwriting() -> None:
    """Every note of 64 pixels: each source pixel's centre has its ink, in place and unmirrored."""
    white, black = np.full(3, 255.0), np.zeros(3)
    note = digit_scenes.Note(7, 32, 32, 64, 0.0, white, black)
    picture, mask = drawn(digit_scenes.Plan(0, 0, 0, 64, (note,)))
    assert (mask == LABELS[7] + 2).all()
    shown = 255 - picture[..., 0].astype(int)
    # A centre lies between four pixels of the scene, which differ from it by an eighth of a source pixel.
    near = np.mean([shown[y::8, x::8] for y in (3, 4) for x in (3, 4)], axis=0)
    assert np.abs(near - IMAGES[7]).max() < 40
    assert np.corrcoef(near.ravel(), IMAGES[7].ravel())[0, 1] > 0.99


def test_handwriting_varies_only_where_asked() -> None:
    assert {(note.slant, note.stretch) for seed in range(20) for note in planned(seed).notes} == {(0.0, 1.0)}
    varied = [note for seed in range(100) for note in planned(seed, vary=1).notes]
    assert max(abs(note.slant) for note in varied) == pytest.approx(digit_scenes.SLANT, rel=0.1)
    assert max(note.stretch for note in varied) == pytest.approx(np.exp(digit_scenes.STRETCH), rel=0.05)


def test_splits_share_no_column_and_no_digit() -> None:
    widths = [[photo.shape[1] for photo in digit_scenes.load_photos(name)] for name in ("train", "val", "test")]
    assert widths == [[384, 384], [128, 128], [128, 128]]
    parts = [digit_scenes.load_photos(name) for name in ("train", "val", "test")]
    from sklearn.datasets import load_sample_images

    for index, whole in enumerate(load_sample_images().images):
        np.testing.assert_array_equal(np.concatenate([part[index] for part in parts], axis=1), whole)
    pools = split(LABELS)
    assert not set(pools["train"]) & set(pools["test"])
    for name in ("train", "test"):
        rng = np.random.default_rng(0)
        shown = {n.digit for _ in range(50) for n in digit_scenes.plan(pools[name], PHOTOS, SIDE, rng).notes}
        assert shown <= set(pools[name].tolist())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "new" / "set"
    assert cli.run(["data", "make", "digit-scenes", str(out), "--train", "12", "--val", "4", "--test", "5"]) == 0
    return out


def test_files_are_in_ade20ks_layout(made: Path) -> None:
    data = ADE20KData(str(made), test="test", class_names="classes.txt", image_size=SIDE, normalization="inception")
    assert data.classes == ("photograph", "5", "6", "7", "8", "9")
    assert [data.n_expected(name) for name in ("train", "val", "test")] == [12, 4, 5]
    seen = set()
    for _, masks in [*data.train_dataloader(), *data.val_dataloader(), *data.test_dataloader()]:
        for mask in masks:
            assert mask.shape == (SIDE, SIDE)
            seen |= set(mask.unique().tolist())
    assert seen == {*range(6), 255}  # 255 by the padding and the crops of training alone
    assert {path.name for path in made.iterdir()} == {"images", "annotations", "classes.txt"}


def test_files_hold_what_was_drawn(made: Path) -> None:
    for name, folder in digit_scenes.FOLDERS.items():
        part = list(digit_scenes.FOLDERS).index(name)
        count = len(list((made / "images" / folder).iterdir()))
        drawn_again = digit_scenes.scenes(
            count,
            IMAGES,
            LABELS,
            split(LABELS)[name],
            digit_scenes.load_photos(name),
            SIDE,
            digit_scenes.mixed(0, part),
        )
        for number, pair in enumerate(drawn_again, start=1):
            for kind, pixels in zip(("images", "annotations"), pair, strict=True):
                with Image.open(made / kind / folder / f"{number:05d}.png") as file:
                    np.testing.assert_array_equal(np.asarray(file), pixels)


def test_same_arguments_same_bytes(tmp_path: Path) -> None:
    few = {"train": 2, "val": 1, "test": 1, "size": 32}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        digit_scenes.make(tmp_path / name, seed=seed, **few)
    files = [
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.png")}
        for name in "abc"
    ]
    assert files[0] == files[1]
    assert files[0].keys() == files[2].keys()
    assert all(files[0][name] != files[2][name] for name in files[0] if name.parts[0] == "images")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"train": 0}, "train"),
        ({"size": 15}, "size"),
        ({"size": 129}, "size"),
        ({"seed": -1}, "seed"),
        ({"classes": (5, 5)}, "classes"),
    ],
)
def test_refusals(tmp_path: Path, options: dict[str, int], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        digit_scenes.make(tmp_path / "out", **options)
    assert caught.value.where == field
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="exists"):
        digit_scenes.make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(digit_scenes, "draw", stop)
    with pytest.raises(KeyboardInterrupt):
        digit_scenes.make(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_missing_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'lightning-petl\[demo\]'"):
        digit_scenes.load_photos("train")
