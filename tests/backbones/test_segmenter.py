"""Decode heads on timm's feature maps: sizes, position embeddings, folding, and what a file's header tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import segmenters
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from lightning_petl import (
    SSF,
    BitFit,
    ConfigError,
    RepAdapter,
    adapted_layers,
    load_adapter,
    merge,
    save_adapter,
    trainable,
)
from lightning_petl.backbones import Segmenter, architecture
from lightning_petl.cli.merge import choose
from lightning_petl.deployment import publish
from lightning_petl.store import load_merged
from lightning_petl.tensorfile import read, read_header
from lightning_petl.testing import add_noise

KINDS = tuple(segmenters.BACKBONES)
VIT = segmenters.BACKBONES["vit"]


def images(*size: int) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("size", [(45, 70), (32, 32), (8, 100), (7, 5)])
@pytest.mark.parametrize("kind", KINDS)
def test_folded_is_unfolded_at_any_size(kind: str, size: tuple[int, int]) -> None:
    task = segmenters.new_task(kind, head="mla", auxiliary_layers=[1]).eval().double()
    segmenters.trained_noise(task.backbone)
    x = images(*size).double()
    with torch.no_grad():
        plain = segmenters.new_task(kind, head="mla", auxiliary_layers=[1]).eval().double()(x)
        before = task(x)
        merge(task.backbone)
        after = task(x)
    assert before.shape == (2, 5, *size)
    assert not torch.allclose(before, plain, atol=1e-2)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_filled_up_with_zeros_below_and_on_the_right(kind: str) -> None:
    task = segmenters.new_task(kind, head="linear").eval()
    x = images(45, 70)
    height, width = task.architecture.grid_size(task.backbone, (45, 70))
    assert height >= 45
    assert width >= 70
    padded = torch.zeros(2, 3, height, width)
    padded[:, :, :45, :70] = x
    with torch.no_grad():
        torch.testing.assert_close(task(x), task(padded)[:, :, :45, :70])


def test_a_position_embedding_is_resampled_as_timm_does() -> None:
    small, large = Segmenter(**named(VIT)), Segmenter(**named(VIT, img_size=(40, 72)))
    model, fixed = small.build().eval(), large.build().eval()
    state = model.state_dict()
    state["pos_embed"] = resample_abs_pos_embed(
        state["pos_embed"], new_size=(5, 9), old_size=(4, 4), num_prefix_tokens=1
    )
    fixed.load_state_dict(state)
    x = images(40, 72)
    with torch.no_grad():
        torch.testing.assert_close(small.run(model, x), large.run(fixed, x))
        shifted = model.pos_embed.clone()
        model.pos_embed.mul_(2)  # it matters at all
        assert not torch.allclose(small.run(model, x), large.run(fixed, x))
        model.pos_embed.copy_(shifted)


def named(settings: dict, **arguments: object) -> dict:
    return {"name": settings["backbone"], "arguments": settings["backbone_args"] | arguments, "num_classes": 5}


def test_maps_are_those_of_the_chosen_layers() -> None:
    chosen = Segmenter(**named(VIT), layers=(1, -1), auxiliary=(2,))
    model = chosen.build().eval()
    x = images(32, 32)
    with torch.no_grad():
        maps = chosen.features(model, x)
        tokens = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
        expected = []
        for block in model.blocks:
            tokens = block(tokens)
            expected.append(tokens[:, 1:].mT.reshape(2, 32, 4, 4))
    assert model.decode_head.taken == (1, 2, 3)
    for found, wanted in zip(maps, expected[1:], strict=True):
        torch.testing.assert_close(found, wanted)


def test_pyramids_come_as_channels_first() -> None:  # ConvNeXt's 48 pixels are filled up to 64, two of its strides
    for kind, widths, grids in (("swin", (16, 32, 64), (12, 6, 3)), ("convnext", (8, 16, 24, 32), (16, 8, 4, 2))):
        chosen = Segmenter(**named(segmenters.BACKBONES[kind]), head_kind="upernet", channels=8)
        model = chosen.build().eval()
        with torch.no_grad():
            maps = chosen.features(model, images(48, 48))
        assert [x.shape[1] for x in maps] == list(widths)
        assert [x.shape[2] for x in maps] == list(grids)


@pytest.mark.parametrize("kind", KINDS)
def test_files_restore_it_and_timm_takes_the_backbone(kind: str, tmp_path: Path) -> None:
    task = segmenters.new_task(kind, head="naive", auxiliary_layers=[0], classes=tuple("abcde"), num_classes=None)
    segmenters.trained_noise(task.backbone)
    task.backbone.decode_head.decoder.convolution[1].running_mean.add_(0.3)
    task.eval()
    x, path, out = images(50, 40), tmp_path / "adapter.safetensors", tmp_path / "merged.safetensors"
    save_adapter(task.backbone, path, task.stored, task.task_record(), task.architecture.record())
    with torch.no_grad():
        before = task(x)
    restored, _ = choose(read_header(path), task.architecture.name, str(path))
    assert restored == architecture(read_header(path)["backbone"], "file")
    assert restored.record() == task.architecture.record()
    torch.manual_seed(7)
    fresh = restored.build().eval()
    load_adapter(fresh, path)
    with torch.no_grad():
        found = restored.on_pixels(fresh, restored.run(fresh, x), (50, 40))
    torch.testing.assert_close(found, before)
    certificate = publish(task.backbone, read_header(path), out, restored, [x, x], "random")
    assert certificate.model is not None
    assert certificate.model.top1_agreement == 1.0
    assert certificate.model.float64 is not None
    assert certificate.model.float64 < 1e-9
    tensors = {name: tensor for name, tensor in read(out)[1].items() if not name.startswith("decode_head.")}
    settings = segmenters.BACKBONES[kind]
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in settings["backbone_args"].items()}
    timm.create_model(settings["backbone"], num_classes=0, **arguments).load_state_dict(tensors, strict=True)
    served = restored.build().eval()
    load_merged(served, out)
    with torch.no_grad():
        torch.testing.assert_close(
            restored.on_pixels(served, restored.run(served, x), (50, 40)), before, atol=1e-4, rtol=1e-4
        )


def test_an_adapter_behind_the_last_layer_read_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"adapter of blocks\.2\.attn\.qkv and 3 more would not train"):
        segmenters.new_task(layers=[1])
    early = RepAdapter(hidden_dim=4, targets=(r"blocks\.[01]\.attn\.qkv",))
    task = segmenters.new_task(layers=[1], method=early)
    assert list(adapted_layers(task.backbone)) == ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]


@pytest.mark.parametrize("kind", KINDS)
def test_ssf_behind_the_last_layer_stays_as_it_is(kind: str, tmp_path: Path) -> None:
    """On the norm that feature maps do not pass, where no choice of layers reaches it."""
    task = segmenters.new_task(kind, method=SSF())
    path = "head.norm" if kind == "convnext" else "norm"
    assert path in adapted_layers(task.backbone)
    names = trainable(task.backbone)
    assert not any(name.startswith(f"{path}.") for name in names)
    assert "patch_embed.proj.adapter.scale" in names or kind == "convnext"
    add_noise(parameter for name, parameter in names.items() if ".adapter." in name)
    x, file = images(50, 40), tmp_path / "adapter.safetensors"
    save_adapter(task.backbone, file, task.stored, task.task_record(), task.architecture.record())
    with torch.no_grad():
        expected = task.eval()(x)
        served = segmenters.new_task(kind, method=SSF(), weights=str(file)).eval()
        torch.testing.assert_close(served(x), expected)
        merge(served.backbone)
        torch.testing.assert_close(served(x), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="would not train"):
        segmenters.new_task(kind, method=SSF(), layers=[1])


def test_what_the_head_does_not_depend_on_stays_frozen(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        task = segmenters.new_task("swin", method=BitFit())
    names = trainable(task.backbone)
    assert "norm.bias" not in names  # the last norm, which feature maps do not pass
    assert "layers.2.blocks.1.mlp.fc2.bias" in names
    assert "1 parameters stay frozen" in caplog.text
    task = segmenters.new_task("vit", method=BitFit(), layers=[0])
    assert not any(name.startswith("blocks.1.") for name in trainable(task.backbone))
    assert "blocks.0.norm1.bias" in trainable(task.backbone)


@pytest.mark.parametrize("size", [96, [96, 128]])
@pytest.mark.parametrize("name", ["hiera_tiny_224", "vit_tiny_patch16_224"])
def test_inputs_have_the_size_that_the_backbone_is_given(name: str, size: Any) -> None:
    chosen = Segmenter(name, {"img_size": size}, 5)
    model = chosen.build().eval()
    assert chosen.input_config(model).image_size == ((96, 96) if size == 96 else (96, 128))
    assert chosen.run(model, chosen.example(model, 1)).shape[:2] == (1, 5)


@pytest.mark.parametrize("kind", segmenters.ONE_SIZE)
def test_a_backbone_of_one_size_says_so(kind: str) -> None:
    settings = segmenters.ONE_SIZE[kind]
    chosen = Segmenter(settings["backbone"], settings["backbone_args"], 5, layers=(-1,))
    model = chosen.build().eval()
    assert chosen.of_one_size(model)
    assert chosen.run(model, images(64, 64)).shape[:2] == (2, 5)
    told = (
        rf"^{settings['backbone']} takes no images of 96 x 64, its own size is 64 x 64 \(.+\) \[model\.backbone\] - "
        r"set data\.image_size to \[64, 64\], and model\.inference to slide .*model\.backbone_args\.img_size"
    )
    with pytest.raises(ConfigError, match=told) as caught:
        chosen.run(model, images(90, 64))
    assert isinstance(caught.value.__cause__, AssertionError | RuntimeError)


def test_layers_that_fill_up_a_backbones_own_size_are_named() -> None:
    """LeViT's last map is a 64th of its 224 pixels, which are no multiple of 64."""
    chosen = Segmenter("levit_128s", {}, 5)
    model = chosen.build().eval()
    with pytest.raises(
        ConfigError, match=r"takes no images of 256 x 256, .* choose model\.layers whose reductions divide 224"
    ):
        chosen.run(model, images(224, 224))
    chosen = Segmenter("levit_128s", {}, 5, layers=(1,))
    assert chosen.run(chosen.build().eval(), images(224, 224)).shape[:2] == (2, 5)


@pytest.mark.parametrize(("kind", "size"), [("beit", 64), ("vit", 32), ("vit", 64)])
def test_other_errors_of_a_backbone_stay_as_they_are(kind: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as want of memory, at the own size of any backbone, and at every size of one that takes all."""
    settings = (segmenters.BACKBONES | segmenters.ONE_SIZE)[kind]
    chosen = Segmenter(**named(settings))
    model = chosen.build().eval()
    run = model.forward_intermediates

    def fails(x: Tensor, **options: Any) -> list[Tensor]:
        if len(x) > 1:
            raise torch.OutOfMemoryError("no memory")
        return run(x, **options)

    monkeypatch.setattr(model, "forward_intermediates", fails)
    with pytest.raises(torch.OutOfMemoryError, match="no memory"):
        chosen.run(model, images(size, size))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"layers": [4]}, r"model\.layers"),
        ({"layers": [2, 1]}, r"model\.layers"),
        ({"auxiliary_layers": [-5]}, r"model\.auxiliary_layers"),
        ({"head": "deep"}, r"model\.head"),
        ({"head_channels": 1}, r"model\.head_channels"),
        ({"head_dropout": 1.0}, r"model\.head_dropout"),
        ({"backbone_args": {"depht": 3}}, r"model\.backbone_args"),
        ({"backbone": "vit_tny_patch16_224"}, r"unknown backbone"),
    ],
)
def test_bad_settings_are_named(changes: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        segmenters.new_task(**changes)


def test_a_model_without_feature_maps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("timm.models.vision_transformer.VisionTransformer.forward_intermediates")
    with pytest.raises(ConfigError, match="vit_tiny_patch16_224 gives no feature maps"):
        Segmenter(**named(VIT)).build()
