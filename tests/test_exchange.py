"""Adapters as stock PEFT loads them, and PEFT's own adapters as ours: the same outputs both ways."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightning_petl import (
    ARC,
    SSF,
    AdapterFileError,
    Affine,
    BitFit,
    Consolidator,
    LinearProbe,
    LoRA,
    LowRank,
    Method,
    ModuleAdapter,
    NotMergeable,
    PETLError,
    PluginError,
    RepAdapter,
    TargetNotFound,
    adapted_layers,
    inject,
    load_adapter,
    merge,
    save_adapter,
    trainable,
)
from lightning_petl.exchange import Exported, export_peft, import_peft
from lightning_petl.methods.lora import LoRALayer
from lightning_petl.peft_format import CONFIG, PREFIX, WEIGHTS, parse
from lightning_petl.testing import add_noise
from lightning_petl.testing.backbones import convnext, swin, vit


def _transformers_vit(**options: Any) -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=5, **options)
    return transformers.ViTForImageClassification(config)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": vit,
    "vit, layer scale, no qkv bias": lambda: vit(init_values=0.1, qkv_bias=False),
    "vit of 12 blocks": lambda: vit(depth=12),  # PEFT shortens lists of 20 targets and more
    "swin": swin,
    "convnext": convnext,
    "convnext of convolutions": lambda: convnext(conv_mlp=True),
    "vit of transformers": _transformers_vit,
    "vit of transformers, no qkv bias": lambda: _transformers_vit(qkv_bias=False),
}
each_model = pytest.mark.parametrize("name", MODELS)
HEADS = {"swin": "head.fc", "convnext": "head.fc", "vit of transformers": "classifier"}
METHODS: dict[str, Method] = {
    "RepAdapter": RepAdapter(hidden_dim=6, groups=2, scale=0.5),
    "RepAdapter, dense": RepAdapter(hidden_dim=4, groups=1, scale=5.0),
    "ARC": ARC(rank=5),
    "LoRA": LoRA(rank=4, alpha=6, sites=("attn", "mlp")),
    "LoRA with biases": LoRA(rank=4, alpha=4, sites=("attn", "mlp"), bias=True),
}


def build(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]()
    add_noise(model.parameters(), std=0.05)
    return model.to(dtype).eval()


def head_of(name: str) -> str:
    return next((head for key, head in HEADS.items() if name.startswith(key)), "head")


def output(model: nn.Module, shape: tuple[int, ...] = (2, 3, 32, 32)) -> Tensor:
    like = next(model.parameters())
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(like)
    with torch.no_grad():
        found = model.eval()(x)
    return found if isinstance(found, Tensor) else found.logits


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).detach().abs().max()) <= tolerance * max(1.0, float(expected.detach().abs().max()))


def trained(model: nn.Module, method: Method, head: str = "") -> nn.Module:
    """A model with adapters far from where they start, and with a new head."""
    inject(model, method)
    add_noise(trainable(model).values(), std=0.3, seed=5)
    if head:
        add_noise(model.get_submodule(head).parameters(), std=0.3, seed=6)
    return model


def exported(
    plain: Callable[[], nn.Module], model: nn.Module, folder: Path, extra: tuple[str, ...]
) -> tuple[Exported, PeftModel]:
    """What an export says, and the folder as stock PEFT loads it, without a warning."""
    save_adapter(model, folder / "adapter.safetensors", extra)
    done = export_peft(plain(), folder / "adapter.safetensors", folder / "peft")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*|.*ignored.*|.*Unexpected keyword.*")
        return done, PeftModel.from_pretrained(plain(), folder / "peft", autocast_adapter_dtype=False)


@each_model
@pytest.mark.parametrize("method", METHODS)
def test_stock_peft_gives_the_same_logits(name: str, method: str, tmp_path: Path) -> None:
    model = trained(build(name), METHODS[method], head_of(name))
    expected = output(model)
    assert (expected - output(build(name))).abs().max() > 1e-3
    done, theirs = exported(lambda: build(name), model, tmp_path, (head_of(name),))
    close(output(theirs), expected)
    assert done.error < 1e-14
    assert done.saved == (head_of(name),)
    assert set(done.layers) == {path for layer in adapted_layers(model).values() for path in layer.target.layers}
    stored = load_file(tmp_path / "peft" / WEIGHTS)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float64}
    if not done.without_bias:
        close(output(theirs.merge_and_unload()), expected)


@each_model
def test_layers_without_a_bias_are_told(name: str, tmp_path: Path) -> None:
    plain = build(name)
    done, _ = exported(lambda: build(name), trained(build(name), RepAdapter()), tmp_path, ())
    assert set(done.without_bias) == {path for path in done.layers if plain.get_submodule(path).bias is None}
    assert bool(done.without_bias) == name.endswith("no qkv bias")
    readme = (tmp_path / "peft/README.md").read_text()
    assert ("cannot merge" in readme) == bool(done.without_bias)
    assert "fingerprint" in readme


def test_separate_layers_each_get_a_pair_of_a_shared_adapter(tmp_path: Path) -> None:
    name = "vit of transformers"
    model = trained(build(name), RepAdapter(hidden_dim=4))
    done, _ = exported(lambda: build(name), model, tmp_path, ())
    assert len(adapted_layers(model)) == 4
    assert len(done.layers) == 2 * (3 + 1)
    stored = load_file(tmp_path / "peft" / WEIGHTS)
    path = f"{PREFIX}vit.layers.0.attention"
    assert torch.equal(stored[f"{path}.q_proj.lora_A.weight"], stored[f"{path}.v_proj.lora_A.weight"])
    assert not torch.equal(stored[f"{path}.q_proj.lora_B.weight"], stored[f"{path}.v_proj.lora_B.weight"])


@pytest.mark.parametrize("method", [LoRA(rank=3, alpha=7, parts=("q", "v"), bias=True), LoRA(parts=("k",))], ids=repr)
@pytest.mark.parametrize("name", ["vit", "vit of transformers"])
def test_parts_of_qkv(name: str, method: LoRA, tmp_path: Path) -> None:
    model = trained(build(name), method, head_of(name))
    done, theirs = exported(lambda: build(name), model, tmp_path, (head_of(name),))
    close(output(theirs), output(model))
    parts = method.parts or ()
    if name == "vit":
        assert done.rank == method.rank * len(parts)
    else:
        assert {path.rpartition(".")[2][0] for path in done.layers} == set(parts)  # a layer left alone is left out


def test_a_lora_keeps_its_tensors_its_alpha_and_its_bits(tmp_path: Path) -> None:
    model = trained(build("vit", torch.float32), LoRA(rank=4, alpha=12))
    exported(lambda: build("vit", torch.float32), model, tmp_path, ())
    config = json.loads((tmp_path / "peft" / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["modules_to_save"]) == (4, 12, None)
    assert "lora_bias" not in config  # PEFT before 0.14 does not know it
    stored = load_file(tmp_path / "peft" / WEIGHTS)
    for path, layer in adapted_layers(model).items():
        assert torch.equal(stored[f"{PREFIX}{path}.lora_A.weight"], layer.adapter.down.weight)
        assert torch.equal(stored[f"{PREFIX}{path}.lora_B.weight"], layer.adapter.up.weight)
    back = import_peft(build("vit", torch.float32), tmp_path / "peft")
    assert torch.equal(output(back), output(model))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)], ids=str)
def test_other_dtypes(dtype: torch.dtype, tolerance: float, tmp_path: Path) -> None:
    model = trained(build("vit", dtype), RepAdapter(), "head")
    done, theirs = exported(lambda: build("vit", dtype), model, tmp_path, ("head",))
    stored = load_file(tmp_path / "peft" / WEIGHTS)
    assert {t.dtype for key, t in stored.items() if "lora_" in key} == {torch.float32}
    assert {t.dtype for key, t in stored.items() if "lora_" not in key} == {dtype}
    close(output(theirs).float(), output(model).float(), tolerance)
    assert done.error < 1e-6


class _Ranks(LoRA):
    """Layers of different ranks and scales."""

    def build(self, target: Any, shared: nn.Module | None = None) -> LoRALayer:
        first = target.path.startswith("blocks.0")
        return LoRALayer(target, 2 if first else 5, 1.5 if first else 0.3, 0.0, bias=first)


def test_ranks_scales_and_biases_that_differ(tmp_path: Path) -> None:
    model = trained(build("vit"), _Ranks())
    done, theirs = exported(lambda: build("vit"), model, tmp_path, ())
    assert done.rank == 5
    assert json.loads((tmp_path / "peft" / CONFIG).read_text())["lora_alpha"] == 5
    close(output(theirs), output(model))


def test_an_alpha_of_zero(tmp_path: Path) -> None:
    model = trained(build("vit"), LoRA(alpha=0))
    _, theirs = exported(lambda: build("vit"), model, tmp_path, ())
    close(output(theirs), output(build("vit")))
    close(output(import_peft(build("vit"), tmp_path / "peft")), output(build("vit")))


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}, {"global_pool": "avg"}], ids=str)
def test_modules_besides_the_head(options: dict[str, Any], tmp_path: Path) -> None:
    """PEFT compares ends of names: it takes q_norm for norm, so that is stored too."""

    def plain() -> nn.Module:
        torch.manual_seed(0)
        model = vit(**options).double().eval()
        add_noise(model.parameters(), std=0.05)
        return model

    model = trained(plain(), RepAdapter())
    norm = "fc_norm" if "global_pool" in options else "norm"
    for path in (norm, "head"):
        add_noise(model.get_submodule(path).parameters(), std=0.3, seed=8)
    done, theirs = exported(plain, model, tmp_path, (norm, "head"))
    close(output(theirs), output(model))
    assert {norm, "head"} <= set(done.saved)
    assert ("blocks.0.attn.q_norm" in done.saved) == ("qk_norm" in options)


def test_changed_statistics_of_a_batch_norm(tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.norm, self.head = nn.Linear(8, 24), nn.BatchNorm1d(24), nn.Linear(24, 5)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.norm(self.qkv(x)))
            return out

    def plain() -> nn.Module:
        torch.manual_seed(0)
        return Model().double().eval()

    model = inject(plain(), RepAdapter(sites=("attn",)), inputs=(torch.zeros(4, 8, dtype=torch.float64),))
    add_noise(trainable(model).values(), std=0.3)
    model.train()(torch.randn(16, 8, dtype=torch.float64))
    done, theirs = exported(plain, model, tmp_path, ())
    assert done.saved == ("norm",)
    close(output(theirs, (4, 8)), output(model, (4, 8)))


class _Twins(nn.Module):
    """A module whose inner paths end like another's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.wrapped = nn.Linear(8, 8), nn.ModuleDict({"first": nn.Linear(8, 8)})
        self.head, self.pre_head = nn.Linear(8, 3), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.pre_head(self.wrapped["first"](self.first(x))))
        return out


def twins() -> nn.Module:
    torch.manual_seed(0)
    return _Twins().double().eval()


def test_layers_whose_names_end_alike_are_told_apart(tmp_path: Path) -> None:
    model = trained(twins(), RepAdapter(targets=("first",)), "head")
    done, theirs = exported(twins, model, tmp_path, ("head",))
    assert done.layers == ("first",)
    assert json.loads((tmp_path / "peft" / CONFIG).read_text())["target_modules"] == "first"
    close(output(theirs, (4, 8)), output(model, (4, 8)))
    assert done.saved == ("head", "pre_head")


class _Wrapping(Method):
    wraps = "module"

    def build(self, target: Any, shared: nn.Module | None = None) -> ModuleAdapter:
        class Doubled(ModuleAdapter):
            def __init__(self) -> None:
                super().__init__()
                self.factor = nn.Parameter(torch.ones((), dtype=target.dtype))

            def forward(self, x: Tensor, base: Any) -> Any:
                return base(x) * self.factor

        return Doubled()


class _WrongLayer(LoRALayer):
    def low_rank(self, base: Affine) -> LowRank:
        return LowRank(self.down.weight, self.up.weight)  # without the scale


class _Wrong(LoRA):
    def build(self, target: Any, shared: nn.Module | None = None) -> LoRALayer:
        return _WrongLayer(target, 2, 3.0, 0.0, bias=False)


@pytest.mark.parametrize(
    ("method", "error", "words"),
    [
        (Consolidator(), NotMergeable, r"cannot hold Consolidator: it has no low-rank form \[blocks\.0\.attn\.qkv\]"),
        (SSF(), NotMergeable, r"cannot hold SSF: it wraps outputs.*\[patch_embed\.proj\]"),
        (BitFit(), NotMergeable, "cannot hold BitFit: it adapts no layer"),
        (LinearProbe(), NotMergeable, "cannot hold LinearProbe: it adapts no layer"),
        (_Wrapping(targets=(r"blocks\.0\.mlp",)), NotMergeable, "cannot hold _Wrapping: it wraps module"),
        (_Wrong(), PluginError, r"low_rank of _WrongLayer is not.*\[blocks\.0\.attn\.qkv\]"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Method) else "",
)
def test_methods_that_peft_cannot_hold_are_refused_by_name(
    method: Method, error: type[PETLError], words: str, tmp_path: Path
) -> None:
    model = trained(build("vit"), method, "head")
    save_adapter(model, tmp_path / "adapter.safetensors", ("head",))
    with pytest.raises(error, match=words):
        export_peft(build("vit"), tmp_path / "adapter.safetensors", tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


@pytest.mark.parametrize(
    ("name", "extra", "words"),
    [
        ("vit", "cls_token", r"cls_token belongs to the model itself \[extra\.cls_token\]"),
        ("swin", "layers.0.blocks.0.attn.relative_position_bias_table", r"attn\.qkv is wrapped already \[layers\.0\."),
    ],
)
def test_tensors_that_peft_cannot_store_are_refused(name: str, extra: str, words: str, tmp_path: Path) -> None:
    model = trained(build(name), RepAdapter())
    save_adapter(model, tmp_path / "adapter.safetensors", (extra,))
    with pytest.raises(NotMergeable, match=words):
        export_peft(build(name), tmp_path / "adapter.safetensors", tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


def test_a_second_export_replaces_the_first_and_a_failed_one_leaves_no_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (trained(build("vit"), method) for method in (RepAdapter(), LoRA(rank=2)))
    exported(lambda: build("vit"), first, tmp_path, ())
    _, theirs = exported(lambda: build("vit"), second, tmp_path, ())
    close(output(theirs), output(second))
    monkeypatch.setattr("lightning_petl.peft_format.save_file", _full_disk)
    with pytest.raises(AdapterFileError, match="No space left"):
        export_peft(build("vit"), tmp_path / "adapter.safetensors", tmp_path / "peft")
    assert not (tmp_path / "peft" / CONFIG).exists()
    with pytest.raises(ValueError, match=CONFIG):
        PeftModel.from_pretrained(build("vit"), tmp_path / "peft")


def _full_disk(*arguments: object) -> None:
    raise OSError(28, "No space left on device")


def made_by_peft(name: str, folder: Path, dtype: torch.dtype = torch.float64, **options: Any) -> Tensor:
    """Saves an adapter that PEFT made, far from where it starts; returns its logits."""
    config = LoraConfig(**{"r": 4, "lora_alpha": 6, **options})
    model = get_peft_model(build(name, dtype), config, autocast_adapter_dtype=False)
    add_noise([p for _, p in sorted(model.named_parameters()) if p.requires_grad], std=0.3, seed=5)
    expected = output(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT takes biases of lora_B for damaged matrices
        model.save_pretrained(folder)
    return expected


CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("vit", {"target_modules": ["qkv"]}),
    "several": ("vit", {"target_modules": ["qkv", "attn.proj", "fc1", "fc2"]}),
    "expression": ("vit", {"target_modules": r"blocks\.1\.(attn\.qkv|mlp\.fc\d)"}),
    "all linear": ("vit", {"target_modules": "all-linear"}),
    "excluded": ("vit", {"target_modules": ["qkv", "fc1"], "exclude_modules": ["blocks.0.mlp.fc1"]}),
    "excluded by expression": ("vit", {"target_modules": ["qkv", "fc1"], "exclude_modules": r".*\.0\..*fc1"}),
    "head": ("vit", {"target_modules": ["qkv"], "modules_to_save": ["head"]}),
    "head and norm": ("vit", {"target_modules": ["fc1"], "modules_to_save": ["head", "norm"]}),
    "biases": ("vit", {"target_modules": ["qkv", "fc2"], "lora_bias": True}),
    "rank-stabilised": ("vit", {"target_modules": ["qkv"], "use_rslora": True}),
    "gaussian": ("vit", {"target_modules": ["qkv"], "init_lora_weights": "gaussian", "lora_dropout": 0.25}),
    "ranks": ("vit", {"target_modules": ["qkv", "fc1"], "rank_pattern": {r"blocks\.0\.attn\.qkv": 2, "fc1": 7}}),
    "alphas": ("vit", {"target_modules": ["qkv", "fc1"], "alpha_pattern": {"qkv": 3}, "lora_bias": True}),
    "ranks, alphas, rank-stabilised": (
        "vit",
        {
            "target_modules": ["qkv", "fc1"],
            "rank_pattern": {"fc1": 7},
            "alpha_pattern": {r"^blocks\.1.*": 3},
            "use_rslora": True,
        },
    ),
    "layers": (
        "vit of transformers",
        {"target_modules": ["q_proj", "fc1"], "layers_to_transform": [1], "layers_pattern": "layers"},
    ),
    "convolutions": ("convnext of convolutions", {"target_modules": ["fc1", "fc2"], "lora_bias": True}),
    "transformers": (
        "vit of transformers",
        {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"]},
    ),
    "swin": ("swin", {"target_modules": ["qkv", "reduction"], "modules_to_save": ["head.fc"]}),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_what_peft_made_gives_the_same_logits(case: str, tmp_path: Path) -> None:
    name, options = CONFIGS[case]
    expected = made_by_peft(name, tmp_path / "peft", **options)
    model = import_peft(build(name), tmp_path / "peft")
    close(output(model), expected)
    assert (expected - output(build(name))).abs().max() > 1e-3
    save_adapter(model, tmp_path / "adapter.safetensors")
    loaded = load_adapter(build(name), tmp_path / "adapter.safetensors")
    close(output(loaded), expected)
    _, theirs = exported(lambda: build(name), loaded, tmp_path, ())
    close(output(theirs), expected)
    merge(loaded)
    close(output(loaded), expected)


def test_what_peft_says_of_itself_becomes_arguments(tmp_path: Path) -> None:
    made_by_peft("vit", tmp_path, target_modules=["qkv"], lora_dropout=0.25, lora_bias=True)
    model = import_peft(build("vit"), tmp_path)
    method = next(iter(adapted_layers(model).values())).adapter
    assert isinstance(method, LoRALayer)
    assert (method.rank, method.scale, method.dropout) == (4, 1.5, 0.25)
    assert trainable(model).keys() == {
        f"blocks.{i}.attn.qkv.adapter.{name}" for i in range(2) for name in ("down.weight", "up.weight", "up.bias")
    }


def test_half_precision_is_widened_and_double_is_not_cut_short(tmp_path: Path) -> None:
    expected = made_by_peft("vit", tmp_path / "half", torch.bfloat16, target_modules=["qkv"])
    model = import_peft(build("vit", torch.bfloat16).float(), tmp_path / "half")
    close(output(model), expected.float(), 0.1)
    made_by_peft("vit", tmp_path / "double", target_modules=["qkv"])
    plain = build("vit", torch.float32)
    with pytest.raises(AdapterFileError, match=r"do not fit torch\.float32.*lora_A.*onto a backbone in torch\.float64"):
        import_peft(plain, tmp_path / "double")
    assert not adapted_layers(plain)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of PEFT with a bias and a head, to be spoilt in copies."""
    made = tmp_path_factory.mktemp("peft")
    made_by_peft("vit", made, target_modules=["qkv", "fc1"], lora_bias=True, modules_to_save=["head"])
    return made


@pytest.fixture
def spoilt(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "spoilt"))


@pytest.fixture
def untouched() -> Iterator[nn.Module]:
    """A plain model that must be as it was after the test."""
    model = build("vit")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grads = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    yield model
    assert not adapted_layers(model)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert grads == {name: parameter.requires_grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("use_dora", True, "DoRA normalises"),
        ("use_qalora", True, "QA-LoRA"),
        ("fan_in_fan_out", True, "transposes"),
        ("bias", "all", "biases of the frozen layers"),
        ("bias", "lora_only", "biases of the frozen layers"),
        ("init_lora_weights", "pissa", "frozen weights that are changed"),
        ("init_lora_weights", "pissa_niter_16", "frozen weights that are changed"),
        ("init_lora_weights", "olora", "frozen weights that are changed"),
        ("init_lora_weights", "corda", "frozen weights that are changed"),
        ("init_lora_weights", "loftq", "frozen weights that are changed"),
        ("init_lora_weights", ["mica"], "frozen weights that are changed"),
        ("layer_replication", [[0, 2]], "repeats layers"),
        ("target_parameters", ["cls_token"], "adapts parameters"),
        ("trainable_token_indices", [1], "rows of an embedding"),
        ("alora_invocation_tokens", [1], "some of the tokens"),
        ("loftq_config", {"loftq_bits": 4}, "not known"),
        ("eva_config", {"rho": 2.0}, "not known"),
        ("kasa_config", {"beta": 1e-4}, "not known"),
        ("velora_config", {"scale": 1.0}, "not known"),
        ("arrow_config", {"top_k": 3}, "not known"),
        ("use_bdlora", {"nblocks": 2}, "not known"),
        ("ensure_weight_tying", True, "not known"),
        ("of_the_future", 3, "not known"),
        ("peft_type", "IA3", "'IA3'"),
        ("peft_type", None, "None"),
        ("r", 0, "not what PEFT writes"),
        ("r", True, "not what PEFT writes"),
        ("r", "4", "not what PEFT writes"),
        ("lora_alpha", float("nan"), "not what PEFT writes"),
        ("lora_alpha", [6], "not what PEFT writes"),
        ("lora_dropout", 1.0, "not what PEFT writes"),
        ("lora_bias", "yes", "not what PEFT writes"),
        ("use_rslora", 1, "not what PEFT writes"),
        ("target_modules", [], "names no modules"),
        ("target_modules", None, "names no modules"),
        ("target_modules", "all-linear", "names no modules"),
        ("target_modules", [4], "not what PEFT writes"),
        ("target_modules", "(qkv", "no regular expression"),
        ("exclude_modules", "[a", "no regular expression"),
        ("rank_pattern", {"(": 4}, "no regular expression"),
        ("rank_pattern", {"qkv": -1}, "not what PEFT writes"),
        ("alpha_pattern", {"qkv": None}, "not what PEFT writes"),
        ("layers_to_transform", ["a"], "not what PEFT writes"),
        ("modules_to_save", [""], "not what PEFT writes"),
    ],
)
def test_keys_that_change_the_map_are_refused_by_name(
    key: str, value: object, words: str, spoilt: Path, untouched: nn.Module
) -> None:
    config = json.loads((spoilt / CONFIG).read_text())
    (spoilt / CONFIG).write_text(json.dumps(config | {key: value}))
    with pytest.raises(AdapterFileError, match=rf"{words}.*{CONFIG}: {key}\]"):
        import_peft(untouched, spoilt)


def test_keys_that_are_off_or_tell_of_the_origin_are_passed(spoilt: Path) -> None:
    expected = output(import_peft(build("vit"), spoilt))
    config = json.loads((spoilt / CONFIG).read_text())
    off = {"of_the_future": None, "another": False, "more": {}, "task_type": "FEATURE_EXTRACTION", "revision": "main"}
    (spoilt / CONFIG).write_text(json.dumps(config | off | {"base_model_name_or_path": "somewhere"}))
    assert torch.equal(output(import_peft(build("vit"), spoilt)), expected)


def _without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if not key.startswith(f"{PREFIX}{name}")}


def _with(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: tensors | {f"{PREFIX}{name}": change(tensors[f"{PREFIX}{name}"])}


def _spoil(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[3] = value
        return tensor

    return change


QKV = "blocks.1.attn.qkv"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_with(f"{QKV}.lora_A.weight", _spoil(float("nan"))), rf"not finite.*{QKV}\.lora_A"),
        (_with(f"{QKV}.lora_B.bias", _spoil(float("inf"))), rf"not finite.*{QKV}\.lora_B\.bias"),
        (_with("head.weight", _spoil(float("nan"))), r"not finite.*head\.weight"),
        (_without(f"{QKV}.lora_A"), rf"lacks 1 tensors, {PREFIX}{QKV}\.lora_A\.weight"),
        (_without(f"{QKV}.lora_B.bias"), rf"lacks 1 tensors, {PREFIX}{QKV}\.lora_B\.bias"),
        (_without(QKV), rf"lacks 3 tensors, {PREFIX}{QKV}"),
        (_without("head.bias"), rf"lacks 1 tensors, {PREFIX}head\.bias"),
        (_with(f"{QKV}.lora_A.weight", lambda t: t[:3]), r"\(3, 32\), this model needs \(4, 32\)"),
        (_with(f"{QKV}.lora_A.weight", lambda t: t[:, :31]), r"\(4, 31\), this model needs \(4, 32\)"),
        (_with(f"{QKV}.lora_A.weight", lambda t: t[..., None, None]), r"\(4, 32, 1, 1\), this model needs"),
        (_with(f"{QKV}.lora_B.weight", lambda t: t.T), r"\(4, 96\), this model needs \(96, 4\)"),
        (_with(f"{QKV}.lora_B.bias", lambda t: t[:1]), r"\(1,\), this model needs \(96,\)"),
        (_with("head.weight", lambda t: t[:4]), r"\(4, 32\), this model needs \(5, 32\).*head\.weight"),
        (lambda t: t | {f"{PREFIX}{QKV}.lora_E": torch.zeros(4)}, "holds unknown 1 tensors"),
        (lambda t: t | {f"{PREFIX}blocks.0.mlp.fc2.lora_A.weight": torch.zeros(4, 64)}, "holds unknown 1 tensors"),
        (lambda t: t | {f"{PREFIX}{QKV}.base_layer.bias": torch.zeros(96)}, "holds unknown 1 tensors"),
        (lambda t: t | {"qkv.lora_A": torch.zeros(4)}, r"qkv\.lora_A is not named as PEFT does"),
    ],
)
def test_spoilt_tensors_are_refused(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], words: str, spoilt: Path, untouched: nn.Module
) -> None:
    tensors = change(load_file(spoilt / WEIGHTS))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, spoilt / WEIGHTS)
    with pytest.raises(AdapterFileError, match=rf"{words}.*"):
        import_peft(untouched, spoilt)


def test_files_that_are_missing_or_damaged(spoilt: Path, tmp_path: Path, untouched: nn.Module) -> None:
    with pytest.raises(AdapterFileError, match=rf"no such file.*{CONFIG}"):
        import_peft(untouched, tmp_path / "nowhere")
    whole = (spoilt / WEIGHTS).read_bytes()
    (spoilt / WEIGHTS).write_bytes(whole[:-9])
    with pytest.raises(AdapterFileError, match=f"damaged.*{WEIGHTS}"):
        import_peft(untouched, spoilt)
    (spoilt / WEIGHTS).unlink()
    (spoilt / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(AdapterFileError, match="pickled files are not opened"):
        import_peft(untouched, spoilt)
    for text in ("{", "[]", "[" * 100_000):
        (spoilt / CONFIG).write_text(text)
        with pytest.raises(AdapterFileError, match=CONFIG):
            import_peft(untouched, spoilt)


def test_modules_that_the_model_lacks_or_that_do_not_fold(tmp_path: Path, untouched: nn.Module) -> None:
    made_by_peft("vit of transformers", tmp_path / "other", target_modules=["q_proj"])
    with pytest.raises(TargetNotFound, match="match no module"):
        import_peft(untouched, tmp_path / "other")
    made_by_peft("vit", tmp_path / "patches", target_modules=["patch_embed.proj"])
    with pytest.raises(NotMergeable, match=r"8x8 convolution.*\[patch_embed\.proj\]"):
        import_peft(untouched, tmp_path / "patches")


MATCHES: list[dict[str, Any]] = [
    {"target_modules": ["qkv"]},
    {"target_modules": ["v", "kv", "proj"]},
    {"target_modules": ["blocks.1.attn.qkv", "fc1"]},
    {"target_modules": ["0.attn.qkv"]},
    {"target_modules": r".*\.(qkv|fc2)"},
    {"target_modules": r"qkv"},
    {"target_modules": ["qkv", "fc1"], "exclude_modules": ["fc1"]},
    {"target_modules": ["qkv", "fc1"], "exclude_modules": r"blocks\.0\..*"},
    {"target_modules": ["fc1", "head"], "modules_to_save": ["head"]},
    {"target_modules": ["fc1", "qkv"], "modules_to_save": ["attn"]},
    {"target_modules": ["fc1", "qkv"], "layers_to_transform": [1]},
    {"target_modules": ["fc1", "qkv"], "layers_to_transform": 0, "layers_pattern": "blocks"},
    {"target_modules": ["fc1", "blocks.0.attn.qkv"], "layers_to_transform": [1], "layers_pattern": ["x", "blocks"]},
    {"target_modules": ["q_proj", "fc1"], "layers_to_transform": [1]},
    {"target_modules": ["q_proj", "fc1"], "layers_to_transform": [0], "layers_pattern": ["layers"]},
    {"target_modules": ["norm", "norm1"]},
]


@pytest.mark.parametrize("options", MATCHES, ids=str)
@pytest.mark.parametrize("name", ["vit", "vit of transformers", "swin", "convnext"])
def test_modules_are_meant_as_peft_means_them(name: str, options: dict[str, Any]) -> None:
    theirs = LoraConfig(**options)
    ours = parse({"peft_type": "LORA", **options}, "config")
    paths = [path for path, _ in build(name).named_modules() if path]
    # PEFT marks what is excluded by an object that is false in no way but its type.
    expected = {path for path in paths if check_target_module_exists(theirs, path) and not _is_excluded(theirs, path)}
    assert {path for path in paths if ours.adapts(path)} == expected


def _is_excluded(config: LoraConfig, path: str) -> bool:
    return type(check_target_module_exists(config, path)).__name__ == "_ExcludedModule"


def test_a_folder_for_another_backbone_is_refused_by_its_file(tmp_path: Path) -> None:
    save_adapter(trained(build("vit"), RepAdapter()), tmp_path / "adapter.safetensors")
    other = build("vit")
    add_noise(other.parameters())
    with pytest.raises(PETLError, match="fingerprint"):
        export_peft(other, tmp_path / "adapter.safetensors", tmp_path / "peft")


@pytest.mark.parametrize("method", METHODS)
def test_the_low_rank_form_is_what_merging_adds(method: str) -> None:
    for name in ("vit", "vit of transformers"):
        model = trained(build(name), METHODS[method])
        for layer in adapted_layers(model).values():
            base = layer.affine()
            for each in (base, base.linear):
                change, merged = layer.adapter.low_rank(each), layer.adapter.merged(each)
                assert change is not None
                close(change.scale * change.up @ change.down, merged.weight - each.weight)
                if change.bias is not None:
                    close(change.scale * change.bias, merged.bias - (0 if each.bias is None else each.bias))
                else:
                    assert (merged.bias is None) == (each.bias is None)
