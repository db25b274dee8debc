"""Files of VideoMAE's own code: the loaded model computes what an independent forward computes from the file itself."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_petl import ConfigError
from lightning_petl.backbones import VideoTransformer

WIDTH, DEPTH, HEADS, PATCH, SIZE, FRAMES, TUBELET, CLASSES = 32, 3, 4, 8, 32, 4, 2, 5
SMALL: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "intermediate_size": 4 * WIDTH,
    "image_size": SIZE,
    "patch_size": PATCH,
    "layer_norm_eps": 1e-6,
}
State = dict[str, Tensor]


def drawn(**shapes: tuple[int, ...]) -> State:
    return {name: 0.2 * torch.randn(shape) for name, shape in shapes.items()}


def finetuned(qv_bias: bool = True) -> State:
    """Random weights under the names of the authors' fine-tuning code."""
    torch.manual_seed(5)
    state = drawn(
        **{"patch_embed.proj.weight": (WIDTH, 3, TUBELET, PATCH, PATCH), "patch_embed.proj.bias": (WIDTH,)},
        **{"fc_norm.weight": (WIDTH,), "fc_norm.bias": (WIDTH,)},
        **{"head.weight": (400, WIDTH), "head.bias": (400,)},
    )
    for block in range(DEPTH):
        inside: dict[str, tuple[int, ...]] = {
            "attn.qkv.weight": (3 * WIDTH, WIDTH),
            "attn.proj.weight": (WIDTH, WIDTH),
            "attn.proj.bias": (WIDTH,),
            "mlp.fc1.weight": (4 * WIDTH, WIDTH),
            "mlp.fc1.bias": (4 * WIDTH,),
            "mlp.fc2.weight": (WIDTH, 4 * WIDTH),
            "mlp.fc2.bias": (WIDTH,),
        }
        inside |= {f"norm{number}.{kind}": (WIDTH,) for number in (1, 2) for kind in ("weight", "bias")}
        inside |= dict.fromkeys(("attn.q_bias", "attn.v_bias"), (WIDTH,)) if qv_bias else {}
        state |= drawn(**{f"blocks.{block}.{name}": shape for name, shape in inside.items()})
    return state


def pretrained() -> State:
    """The same as the pre-training code stores it: an encoder with a last norm, and a decoder."""
    state = {
        f"encoder.{name}": tensor for name, tensor in finetuned().items() if not name.startswith(("fc_norm.", "head."))
    }
    return state | drawn(
        **{"encoder.norm.weight": (WIDTH,), "encoder.norm.bias": (WIDTH,), "mask_token": (1, 1, 16)},
        **{"encoder_to_decoder.weight": (16, WIDTH), "decoder.norm.weight": (16,), "decoder.head.weight": (384, 16)},
        **{"decoder.blocks.0.attn.qkv.weight": (48, 16), "decoder.blocks.0.attn.q_bias": (16,)},
    )


def sinusoid(places: int) -> Tensor:
    table = torch.zeros(places, WIDTH, dtype=torch.float64)
    for place in range(places):
        for index in range(WIDTH):
            angle = place / 10000 ** (2 * (index // 2) / WIDTH)
            table[place, index] = math.sin(angle) if index % 2 == 0 else math.cos(angle)
    return table


def norm(x: Tensor, state: State, name: str, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def reference(state: State, clips: Tensor) -> Tensor:
    """Pooled features ``(batch, width)`` of clips, token by token from the file's tensors."""
    tokens = []
    grid = SIZE // PATCH
    for t in range(FRAMES // TUBELET):
        for row in range(grid):
            for column in range(grid):
                tube = clips[:, t * TUBELET : (t + 1) * TUBELET, :, row * PATCH : (row + 1) * PATCH]
                tube = tube[..., column * PATCH : (column + 1) * PATCH].transpose(1, 2).flatten(1)
                tokens.append(tube @ state["patch_embed.proj.weight"].flatten(1).T + state["patch_embed.proj.bias"])
    x = torch.stack(tokens, 1) + sinusoid(len(tokens))
    zeros = torch.zeros(WIDTH, dtype=x.dtype)
    for block in range(DEPTH):
        inside = {name.removeprefix(f"blocks.{block}."): tensor for name, tensor in state.items()}
        seen = norm(x, inside, "norm1", 1e-6)
        bias = torch.cat([inside.get("attn.q_bias", zeros), zeros, inside.get("attn.v_bias", zeros)])
        q, k, v = (seen @ inside["attn.qkv.weight"].T + bias).chunk(3, -1)
        heads = []
        for index in range(HEADS):
            part = slice(index * WIDTH // HEADS, (index + 1) * WIDTH // HEADS)
            weights = (q[..., part] @ k[..., part].mT / (WIDTH // HEADS) ** 0.5).softmax(-1)
            heads.append(weights @ v[..., part])
        x = x + torch.cat(heads, -1) @ inside["attn.proj.weight"].T + inside["attn.proj.bias"]
        hidden = F.gelu(norm(x, inside, "norm2", 1e-6) @ inside["mlp.fc1.weight"].T + inside["mlp.fc1.bias"])
        x = x + hidden @ inside["mlp.fc2.weight"].T + inside["mlp.fc2.bias"]
    return norm(x.mean(1), state, "fc_norm", 1e-5)  # the library's epsilon, which cannot be chosen


def in_float64(state: State) -> State:
    return {name: tensor.double() for name, tensor in state.items()}


def new(**options: Any) -> VideoTransformer:
    return VideoTransformer("videomae", SMALL | options, CLASSES, FRAMES)


def clips() -> Tensor:
    return torch.randn(2, FRAMES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


def scored(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return new().run(model.double().eval(), clips())


def classified(features: Tensor, model: nn.Module) -> Tensor:
    return F.linear(features, model.get_parameter("classifier.weight"), model.get_parameter("classifier.bias")).detach()


WRITERS: dict[str, Callable[[State, Path], None]] = {
    "plain.safetensors": lambda state, path: save_file(state, path),
    "plain.pth": lambda state, path: torch.save(state, path),
    "run.pth": lambda state, path: torch.save({"model": state, "epoch": 3, "args": argparse.Namespace(lr=1)}, path),
    "module.bin": lambda state, path: torch.save({"module": state}, path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_finetuned_file_computes_the_same(name: str, tmp_path: Path) -> None:
    state = finetuned()
    WRITERS[name](state, tmp_path / name)
    model = new().build(str(tmp_path / name))
    assert model.get_parameter("classifier.weight").shape == (CLASSES, WIDTH), "the head stays new"
    assert all(module.bias is None for path, module in model.named_modules() if path.endswith("attention.key"))
    torch.testing.assert_close(scored(model), classified(reference(in_float64(state), clips()), model))


def test_a_file_without_biases_of_q_and_v(tmp_path: Path) -> None:
    state = finetuned(qv_bias=False)
    save_file(state, tmp_path / "a.safetensors")
    model = new(qv_bias=False).build(str(tmp_path / "a.safetensors"))
    torch.testing.assert_close(scored(model), classified(reference(in_float64(state), clips()), model))
    with pytest.raises(ConfigError, match=r"lacks videomae\.encoder\.layer\.0\.attention\.attention\.query\.bias"):
        new().build(str(tmp_path / "a.safetensors"))


def test_a_pretraining_file_leaves_the_decoder_out_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = pretrained()
    torch.save({"model": state}, tmp_path / "a.pth")
    with caplog.at_level(logging.INFO, logger="lightning_petl"):
        model = new().build(str(tmp_path / "a.pth"))
    told = "\n".join(caplog.messages)
    assert "left out decoder, encoder_to_decoder, mask_token, videomae.layernorm" in told
    assert "lacks fc_norm.bias, fc_norm.weight: new" in told
    plain = {name.removeprefix("encoder."): tensor for name, tensor in in_float64(state).items()}
    plain |= {"fc_norm.weight": torch.ones(WIDTH).double(), "fc_norm.bias": torch.zeros(WIDTH).double()}
    torch.testing.assert_close(scored(model), classified(reference(plain, clips()), model))


def test_the_last_norm_is_used_without_mean_pooling(tmp_path: Path) -> None:
    state = pretrained()
    save_file(state, tmp_path / "a.safetensors")
    model = new(use_mean_pooling=False).build(str(tmp_path / "a.safetensors"))
    assert torch.equal(model.get_parameter("videomae.layernorm.weight"), state["encoder.norm.weight"])


def change(old: str, new_name: str | None = None, value: Tensor | None = None) -> Callable[[State], None]:
    def act(state: State) -> None:
        tensor = state.pop(old)
        if new_name is not None:
            state[new_name] = tensor if value is None else value

    return act


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (change("blocks.1.mlp.fc1.bias"), r"lacks videomae\.encoder\.layer\.1\.intermediate\.dense\.bias"),
        (change("blocks.1.mlp.fc1.bias", "blocks.1.mlp.fc3.bias"), r"blocks\.1\.mlp\.fc3\.bias is no tensor of a Vid"),
        (change("blocks.1.attn.q_bias", "blocks.1.attn.qkv.bias"), r"blocks\.1\.attn\.qkv\.bias is no tensor"),
        (change("head.bias", "pos_embed"), r"pos_embed is no tensor"),
        (change("blocks.2.norm1.bias", "blocks.3.norm1.bias"), r"lacks .*layer\.2\.layernorm_before\.bias"),
        (change("fc_norm.bias"), r"lacks fc_norm\.bias"),
        (
            change("patch_embed.proj.bias", "patch_embed.proj.bias", torch.zeros(16)),
            r"projection\.bias in the file is \(16,\), the model's is \(32,\)",
        ),
        (
            change("blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.weight", torch.zeros(97, 32)),
            r"blocks\.0\.attn\.qkv\.weight is no tensor",
        ),
    ],
)
def test_another_file_is_refused(act: Callable[[State], None], message: str, tmp_path: Path) -> None:
    state = finetuned()
    act(state)
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match=message) as told:
        new().build(str(tmp_path / "a.safetensors"))
    assert "\n" not in str(told.value)


def test_other_sizes_are_refused(tmp_path: Path) -> None:
    save_file(finetuned(), tmp_path / "a.safetensors")
    for options, message in (
        ({"num_hidden_layers": DEPTH + 1}, r"lacks videomae\.encoder\.layer\.3"),
        ({"num_hidden_layers": DEPTH - 1}, r"has unknown videomae\.encoder\.layer\.2"),
        ({"patch_size": 16}, r"projection\.weight in the file is \(32, 3, 2, 8, 8\)"),
        ({"intermediate_size": 96}, r"intermediate\.dense\.bias in the file is \(128,\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            new(**options).build(str(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", {"model": {"a": 1}}, {}])
def test_what_is_no_state_dict_is_refused(content: Any, tmp_path: Path) -> None:
    if isinstance(content, bytes):
        (tmp_path / "a.pth").write_bytes(content)
    else:
        torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ConfigError, match=r"a\.pth"):
        new().build(str(tmp_path / "a.pth"))
