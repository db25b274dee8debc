"""Video transformers: built from values, loaded strictly, adapted, folded, and read by the plain library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightning_petl import (
    ARC,
    AdapterFileError,
    ConfigError,
    Consolidator,
    Method,
    RepAdapter,
    adapted_layers,
    inject,
    load_adapter,
    merge,
    save_adapter,
    trainable,
)
from lightning_petl.backbones import VideoTransformer, architecture
from lightning_petl.backbones.video_transformers import FAMILIES
from lightning_petl.store import load_merged, save_merged
from lightning_petl.tensorfile import read_header
from lightning_petl.testing import add_noise

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
}
SMALL: dict[str, dict[str, Any]] = {
    "videomae": SIZES | {"patch_size": 8},
    "timesformer": SIZES | {"patch_size": 8},
    "vivit": SIZES | {"tubelet_size": [2, 8, 8]},
}
FRAMES, CLASSES = 4, 5
BATCH_NORM: dict[str, Any] = {"head_name": "mean", "head_arguments": {"batch_norm": True}}
each_name = pytest.mark.parametrize("name", FAMILIES)


def new(name: str, head: dict[str, Any] | None = None, **options: Any) -> VideoTransformer:
    return VideoTransformer(name, SMALL[name] | options, CLASSES, FRAMES, **(head or {}))


def built(chosen: VideoTransformer, seed: int = 0, pretrained: bool | str = False) -> nn.Module:
    torch.manual_seed(seed)
    model = chosen.build(pretrained).eval()
    if not pretrained:
        add_noise(model.parameters(), std=0.1)
    return model


def clips(batch: int = 2) -> Tensor:
    return torch.randn(batch, FRAMES, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def run(chosen: VideoTransformer, model: nn.Module) -> Tensor:
    with torch.no_grad():
        return chosen.run(model, clips().to(next(model.parameters()).dtype))


@each_name
def test_defaults_are_the_librarys_base_size(name: str) -> None:
    with torch.device("meta"):
        model = VideoTransformer(name, num_classes=174, frames=8).build()
    widths = {module.in_features for module in model.modules() if isinstance(module, nn.Linear)}
    assert widths == {768, 3072}
    assert len([path for path, _ in model.named_modules() if path.endswith("layernorm_before")]) == 12


def test_the_papers_parameter_count() -> None:
    """RepAdapter with h = 2 on VideoMAE's ViT-B: 12 x 2 adapters of 768 x 2 + 2 + 768 x 1 + 768 numbers."""
    with torch.device("meta"):
        model = inject(VideoTransformer("videomae", num_classes=174, frames=8).build(), RepAdapter(hidden_dim=2))
    assert sum(parameter.numel() for parameter in trainable(model).values()) == 73_776


METHODS: tuple[Method, ...] = (
    RepAdapter(hidden_dim=4, dropout=0.0),
    ARC(rank=4, dropout=0.0),
    Consolidator(),
    Consolidator(train_norms_and_biases=True),
)


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("head", [None, BATCH_NORM], ids=["own", "batch_norm"])
@each_name
def test_inject_fold_store_and_reload(name: str, head: dict[str, Any] | None, method: Method, tmp_path: Path) -> None:
    chosen = new(name, head)
    model = inject(built(chosen).double(), method)
    layers = adapted_layers(model)
    per_block = {"videomae": 2, "timesformer": 3, "vivit": 2}[name]
    if not isinstance(method, Consolidator):
        assert len(layers) == 2 * per_block
        assert any("temporal_attention" in path for path in layers) == (name == "timesformer")
    before_head = model.get_submodule(chosen.head(model))
    before_head.requires_grad_(True)
    add_noise(trainable(model).values(), std=0.1)
    wanted = run(chosen, model)
    file = tmp_path / "adapter.safetensors"
    save_adapter(model, file, (chosen.head(model),), backbone=chosen.record())
    again = architecture(read_header(file)["backbone"], "file")  # type: ignore[arg-type]
    assert again == chosen
    loaded = load_adapter(built(new(name, head)).double(), file)
    torch.testing.assert_close(run(chosen, loaded), wanted)
    certificate = merge(model)
    assert certificate.float64_error < 1e-12
    torch.testing.assert_close(run(chosen, model), wanted)
    save_merged(model, tmp_path / "merged.safetensors", read_header(file), certificate.created)
    fresh = built(new(name, head), seed=9).double()
    load_merged(fresh, tmp_path / "merged.safetensors")
    torch.testing.assert_close(run(chosen, fresh), wanted)


@pytest.mark.parametrize("options", [{}, {"qv_bias": False}], ids=["biases", "none"])
def test_a_merged_file_loads_into_the_plain_library(options: dict[str, Any], tmp_path: Path) -> None:
    """Without this package: strictly, but for the biases that the header states as created."""
    chosen = new("videomae", None, **options)
    model = inject(built(chosen), RepAdapter())
    add_noise(trainable(model).values(), std=0.1)
    wanted = run(chosen, model)
    save_adapter(model, tmp_path / "adapter.safetensors", ("classifier",), backbone=chosen.record())
    certificate = merge(model)
    header = read_header(tmp_path / "adapter.safetensors")
    save_merged(model, tmp_path / "merged.safetensors", header, certificate.created)
    config = transformers.VideoMAEConfig(**SMALL["videomae"], num_frames=FRAMES, num_labels=CLASSES, **options)
    plain = transformers.VideoMAEForVideoClassification(config).eval()
    with safe_open(tmp_path / "merged.safetensors", "pt") as file:
        created = json.loads(file.metadata()["created"])
    for path in created:
        plain.get_submodule(path.removesuffix(".bias")).bias = nn.Parameter(torch.zeros(32))
    kinds = {path.split(".")[-2] for path in created}
    assert kinds == (set() if not options else {"query", "value"})
    plain.load_state_dict(load_file(tmp_path / "merged.safetensors"), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(plain(clips()).logits, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", [None, BATCH_NORM], ids=["own", "batch_norm"])
@each_name
def test_a_folder_of_the_library(name: str, head: dict[str, Any] | None, tmp_path: Path) -> None:
    source = built(VideoTransformer(name, SMALL[name], 9, FRAMES))
    source.save_pretrained(tmp_path)  # type: ignore[operator]
    chosen = new(name, head)
    model = built(chosen, seed=4, pretrained=str(tmp_path))
    own = {key: tensor for key, tensor in source.state_dict().items() if not key.startswith("classifier")}
    found = model.state_dict()
    assert {key for key in found if key not in own} == {key for key in found if key.startswith(chosen.head(model))}, (
        "all but the head is the folder's"
    )
    for key, tensor in own.items():
        assert torch.equal(found[key], tensor), key
    single = built(chosen, seed=4, pretrained=str(tmp_path / "model.safetensors"))
    for key, tensor in single.state_dict().items():
        assert torch.equal(found[key], tensor), key


def test_a_head_of_the_same_size_stays_new(tmp_path: Path) -> None:
    source = built(new("videomae"))
    source.save_pretrained(tmp_path)  # type: ignore[operator]
    model = built(new("videomae"), seed=4, pretrained=str(tmp_path))
    assert not torch.equal(model.get_parameter("classifier.weight"), source.get_parameter("classifier.weight"))


def test_a_pickled_folder_and_the_librarys_earlier_names(tmp_path: Path) -> None:
    """Hub files of VideoMAE keep the biases as q_bias and v_bias."""
    source = built(new("videomae"))
    source.config.save_pretrained(tmp_path)  # type: ignore[operator,union-attr]
    earlier = {
        key.replace("query.bias", "q_bias").replace("value.bias", "v_bias"): tensor
        for key, tensor in source.state_dict().items()
    }
    torch.save(earlier, tmp_path / "pytorch_model.bin")
    model = built(new("videomae"), seed=4, pretrained=str(tmp_path))
    name = "videomae.encoder.layer.0.attention.attention.query.bias"
    assert torch.equal(model.get_parameter(name), source.get_parameter(name))


def test_a_pretraining_folder_of_the_library(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = transformers.VideoMAEConfig(**SMALL["videomae"], num_frames=FRAMES, use_mean_pooling=False)
    transformers.VideoMAEForPreTraining(config).save_pretrained(tmp_path)
    with caplog.at_level("INFO", logger="lightning_petl"):
        new("videomae").build(str(tmp_path))
    assert "left out decoder, encoder_to_decoder, mask_token" in "\n".join(caplog.messages)
    assert "lacks fc_norm.bias, fc_norm.weight: new" in "\n".join(caplog.messages)


def _without_a_tensor(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state.pop("fc_norm.bias")
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def _with_one_more(folder: Path) -> None:
    state = load_file(folder / "model.safetensors") | {"videomae.surprise": torch.zeros(2)}
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def _with_other_heads(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"num_attention_heads": 4}
    (folder / "config.json").write_text(json.dumps(config))


def _of_another_image_size(folder: Path) -> None:
    """VideoMAE's positions are computed, so that no tensor shows it."""
    config = json.loads((folder / "config.json").read_text()) | {"image_size": 64}
    (folder / "config.json").write_text(json.dumps(config))


def _of_other_tubelets(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"tubelet_size": 4}
    (folder / "config.json").write_text(json.dumps(config))


def _of_other_patches(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"patch_size": 16}
    (folder / "config.json").write_text(json.dumps(config))


def _of_another_kind(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "vivit"}
    (folder / "config.json").write_text(json.dumps(config))


def _cut_off(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def _without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (_without_a_tensor, r"lacks fc_norm\.bias"),
        (_with_one_more, r"has unknown .*surprise"),
        (_with_other_heads, r"num_attention_heads of the weights is 4, the model's 2"),
        (
            _of_another_image_size,
            r"image_size of the weights is 64, the model's 32 .* - set model\.backbone_args\.image_size to 64",
        ),
        (_of_other_tubelets, r"tubelet_size of the weights is 4, the model's 2 .*backbone_args\.tubelet_size to 4"),
        (_of_other_patches, r"patch_size of the weights is 16, the model's 8 .*backbone_args\.patch_size to 16"),
        (_of_another_kind, r"the weights are of 'vivit', not 'videomae'"),
        (_cut_off, r"cannot read weights"),
        (_without_weights, r"cannot read weights"),
    ],
)
def test_another_folder_is_refused(act: Any, message: str, tmp_path: Path) -> None:
    built(new("videomae")).save_pretrained(tmp_path)  # type: ignore[operator]
    act(tmp_path)
    with pytest.raises(ConfigError, match=message) as told:
        new("videomae").build(str(tmp_path))
    assert "\n" not in str(told.value)


@each_name
def test_other_sizes_are_refused_by_name(name: str, tmp_path: Path) -> None:
    built(new(name)).save_pretrained(tmp_path)  # type: ignore[operator]
    with pytest.raises(ConfigError, match=r"lacks .*layers?\.2\."):
        new(name, num_hidden_layers=3).build(str(tmp_path))
    with pytest.raises(ConfigError, match=r"in the file is \(64"):
        new(name, intermediate_size=48).build(str(tmp_path))


def test_videomae_takes_another_number_of_frames(tmp_path: Path) -> None:
    """Its positions are computed, not learnt: 8 frames run on weights of 16."""
    built(new("videomae")).save_pretrained(tmp_path)  # type: ignore[operator]
    VideoTransformer("videomae", SMALL["videomae"], CLASSES, 8).build(str(tmp_path))
    built(new("vivit")).save_pretrained(tmp_path / "vivit")  # type: ignore[operator]
    with pytest.raises(ConfigError, match=r"position_embeddings in the file is"):
        VideoTransformer("vivit", SMALL["vivit"], CLASSES, 8).build(str(tmp_path / "vivit"))


@each_name
@pytest.mark.parametrize("form", [list, tuple])
def test_sizes_in_another_form_are_the_same(name: str, form: type, tmp_path: Path) -> None:
    """Files keep pairs as lists; a number is a pair of it."""
    built(new(name)).save_pretrained(tmp_path)  # type: ignore[operator]
    other = {"image_size": form((32, 32))} if name != "vivit" else {"tubelet_size": form((2, 8, 8))}
    built(new(name, None, **other), pretrained=str(tmp_path))


@pytest.mark.parametrize("source", ["nowhere.pth", "no/such/folder", "weights"])
def test_missing_weights_are_told(source: str) -> None:
    with pytest.raises(ConfigError, match=rf"no weights {source}.*an id on the hub"):
        new("videomae").build(source)


def test_a_hub_id_goes_to_the_librarys_loading(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a network: what would be downloaded stands in the cache's place."""
    built(new("videomae")).save_pretrained(tmp_path)  # type: ignore[operator]
    asked = []
    original = transformers.VideoMAEForVideoClassification.from_pretrained.__func__
    cls = transformers.VideoMAEForVideoClassification

    def load(kind: Any, source: str, **options: Any) -> Any:
        asked.append(source)
        return original(kind, str(tmp_path), **options)

    monkeypatch.setattr(cls, "from_pretrained", classmethod(load))
    configs = transformers.VideoMAEConfig.get_config_dict
    monkeypatch.setattr(
        transformers.VideoMAEConfig, "get_config_dict", classmethod(lambda cls, _, **k: configs(str(tmp_path), **k))
    )
    new("videomae").build("someone/videomae-small")
    new("videomae").build(True)
    assert asked == ["someone/videomae-small", "MCG-NJU/videomae-base"]


def test_without_a_network_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"cannot read weights.*\[someone/nothing-here\].*local file") as told:
        new("videomae").build("someone/nothing-here")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("videomae", {"hiden_size": 32}, r"no argument hiden_size \[model\.backbone_args\.hiden_size\].*hidden_size"),
        ("videomae", {"num_frames": 4}, r"num_frames follows from model\.frames"),
        ("videomae", {"attn_implementation": "kernels/x"}, r"no argument attn_implementation"),
        ("videomae", {"id2label": ["a"]}, r"no argument id2label"),
        ("videomae", {"hidden_size": "wide"}, r"cannot build videomae: .*hidden_size.*\[model\.backbone_args\]"),
        ("videomae", {"num_attention_heads": 5}, r"cannot build videomae"),
        ("vivit", {"tubelet_size": [3, 8, 8]}, r"4 frames are no whole tubelets of 3 \[model\.frames\]"),
    ],
)
def test_bad_arguments_are_told(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as told:
        new(name, None, **arguments).build()
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "bert"}, r"'bert' is none of videomae"),
        ({"frames": "many"}, r"ValueError"),
        ({"head": {"name": "max", "arguments": {}}}, r"head 'max' is unknown"),
        ({"head": None}, r"TypeError"),
        ({"kind": "transformers"}, r"of kind 'transformers' are unknown"),
    ],
)
def test_a_bad_header_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterFileError, match=message):
        architecture(new("videomae").record() | change, "some file")


@each_name
def test_normalisation_is_the_authors(name: str) -> None:
    chosen = new(name)
    config = chosen.input_config(built(chosen))
    assert config.image_size == (32, 32)
    assert (config.mean, config.std) == (FAMILIES[name].mean, FAMILIES[name].std)
