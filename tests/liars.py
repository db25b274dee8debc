"""Methods that break their word, each in one way; the contract suite must catch every one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from lightning_petl import Adapter, Affine, Method, Target
from lightning_petl.adapter import LowRank


class HonestAdapter(Adapter):
    """The smallest method: scales each output, as `Honest` does in every respect that no liar changes."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(target.out_features, dtype=target.dtype, device=target.device))

    def merged(self, base: Affine) -> Affine:
        return base.scaled(self.scale)

    def forward(self, x: Tensor, base: Affine) -> Tensor:
        return base(x) * self.scale.to(x.dtype)


class Honest(Method):
    adapter: type[HonestAdapter] = HonestAdapter

    def __init__(self, targets: tuple[str, ...] = (r".*fc2",)) -> None:
        super().__init__(targets=targets)

    def build(self, target: Target, shared: nn.Module | None = None) -> Adapter:
        return self.adapter(target)


class ForgetsBias(Honest):
    class adapter(HonestAdapter):  # noqa: N801
        def merged(self, base: Affine) -> Affine:
            return Affine(base.linear.scaled(self.scale).weight, base.bias)


class WrongGradient(Honest):
    class adapter(HonestAdapter):  # noqa: N801
        def forward(self, x: Tensor, base: Affine) -> Tensor:
            return base(x) * self.scale.detach().to(x.dtype) + 0 * self.scale.sum().to(x.dtype)


class WrongLowRank(Honest):
    class adapter(HonestAdapter):  # noqa: N801
        def low_rank(self, base: Affine) -> LowRank:
            added = base.scaled(self.scale)  # with what was there before
            return LowRank(Affine.identity(base.in_features, base.weight).weight, added.weight)


class LowRankForgetsBias(Honest):
    class adapter(HonestAdapter):  # noqa: N801
        def low_rank(self, base: Affine) -> LowRank:
            added = base.scaled(self.scale - 1)
            return LowRank(Affine.identity(base.in_features, base.weight).weight, added.weight)


class WritesToBase(Honest):
    class adapter(HonestAdapter):  # noqa: N801
        def merged(self, base: Affine) -> Affine:
            with torch.no_grad():
                base.weight.mul_(self.scale.unsqueeze(1).to(base.weight.dtype))
            bias = None if base.bias is None else base.bias * self.scale
            return Affine(base.weight + 0 * self.scale.unsqueeze(1), bias)


class WritesToItself(Honest):
    class adapter(HonestAdapter):  # noqa: N801
        def merged(self, base: Affine) -> Affine:
            with torch.no_grad():
                self.scale.mul_(1.1)
            return super().merged(base)


class NarrowMerge(Honest):
    class adapter(HonestAdapter):  # noqa: N801
        def merged(self, base: Affine) -> Affine:
            return super().merged(base).to(torch.float32)


class RandomInEvaluation(Honest):
    class adapter(HonestAdapter):  # noqa: N801
        def forward(self, x: Tensor, base: Affine) -> Tensor:
            return super().forward(x, base) + 1e-3 * torch.rand((), dtype=x.dtype)


class RandomMerge(Honest):
    class adapter(HonestAdapter):  # noqa: N801
        def merged(self, base: Affine) -> Affine:
            return base.scaled(self.scale * (1 + 1e-12 * torch.rand(())))


class OtherInTraining(Honest):
    class adapter(HonestAdapter):  # noqa: N801
        def forward(self, x: Tensor, base: Affine) -> Tensor:
            out = super().forward(x, base)
            return out * 1.01 if self.training else out


class NotIdentity(Honest):
    class adapter(HonestAdapter):  # noqa: N801
        def __init__(self, target: Target) -> None:
            super().__init__(target)
            nn.init.constant_(self.scale, 1.001)


class NoEffect(Honest):
    class adapter(HonestAdapter):  # noqa: N801
        def merged(self, base: Affine) -> Affine:
            return base + base.scaled(self.scale * 0)

        def forward(self, x: Tensor, base: Affine) -> Tensor:
            return base(x) + 0 * self.scale.sum().to(x.dtype)


class TrainsBase(Honest):
    class adapter(HonestAdapter):  # noqa: N801
        def forward(self, x: Tensor, base: Affine) -> Tensor:
            base.weight.requires_grad_(self.training)
            return super().forward(x, base)


class MovesBaseInTraining(Honest):
    class adapter(HonestAdapter):  # noqa: N801
        def forward(self, x: Tensor, base: Affine) -> Tensor:
            if self.training and torch.is_grad_enabled():
                with torch.no_grad():
                    base.weight.mul_(1.001)
            return super().forward(x, base)


class IdleParameter(Honest):
    class adapter(HonestAdapter):  # noqa: N801
        def __init__(self, target: Target) -> None:
            super().__init__(target)
            self.idle = nn.Parameter(torch.zeros(1, dtype=target.dtype, device=target.device))


class LosesAnArgument(Honest):
    """Its adapters depend on something that its arguments do not say."""

    made = 0

    class adapter(HonestAdapter):  # noqa: N801
        offset = 0.0

        def merged(self, base: Affine) -> Affine:
            return base.scaled(self.scale + self.offset)

        def forward(self, x: Tensor, base: Affine) -> Tensor:
            return base(x) * (self.scale + self.offset).to(x.dtype)

    def __init__(self, targets: tuple[str, ...] = (r".*fc2",)) -> None:
        super().__init__(targets=targets)
        self.offset = float(LosesAnArgument.made)
        LosesAnArgument.made += 1

    def build(self, target: Target, shared: nn.Module | None = None) -> Adapter:
        adapter = self.adapter(target)
        adapter.offset = self.offset
        return adapter


class ObjectArgument(Honest):
    def __init__(self, kind: object = torch.float32) -> None:
        super().__init__()


class KeywordBag(Honest):
    """What it takes by ** is recorded in one argument, which it does not take."""

    def __init__(self, **options: float) -> None:
        super().__init__()


class SharesBetweenModels(Honest):
    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[str, torch.dtype, torch.device], Adapter] = {}

    def build(self, target: Target, shared: nn.Module | None = None) -> Adapter:
        return self.kept.setdefault((target.path, target.dtype, target.device), HonestAdapter(target))


class LargerForStorage(Honest):
    class adapter(HonestAdapter):  # noqa: N801
        def consolidated(self) -> Adapter:
            other = HonestAdapter(self.target)
            other.scale = self.scale
            other.register_buffer("ballast", torch.zeros(100))
            return other

        def __init__(self, target: Target) -> None:
            super().__init__(target)
            self.target = target


class ForgetsScale(Honest):
    """Its form for storage is another map."""

    class adapter(HonestAdapter):  # noqa: N801
        def __init__(self, target: Target) -> None:
            super().__init__(target)
            self.target = target

        def consolidated(self) -> Adapter:
            return HonestAdapter(self.target)


class Float32Only(Honest):
    class adapter(HonestAdapter):  # noqa: N801
        def __init__(self, target: Target) -> None:
            super().__init__(target)
            self.scale = nn.Parameter(self.scale.float())


class WidensOutputs(Honest):
    class adapter(HonestAdapter):  # noqa: N801
        def forward(self, x: Tensor, base: Affine) -> Tensor:
            return base(x) * self.scale


class CPUOnly(Honest):
    class adapter(HonestAdapter):  # noqa: N801
        def __init__(self, target: Target) -> None:
            super().__init__(target)
            self.scale = nn.Parameter(torch.ones(target.out_features, dtype=target.dtype))


class FindsNothing(Honest):
    def __init__(self, targets: tuple[str, ...] = (r".*\.no_such_layer",)) -> None:
        super().__init__(targets=targets)


class ChangesShape(Honest):
    class adapter(HonestAdapter):  # noqa: N801
        def merged(self, base: Affine) -> Affine:
            return base.scaled(self.scale).rows(0, 8)


class HiddenState(Honest):
    """Learns something that no state dict holds."""

    class adapter(HonestAdapter):  # noqa: N801
        def __init__(self, target: Target) -> None:
            super().__init__(target)
            kept = torch.zeros(target.out_features, dtype=target.dtype, device=target.device)
            self.register_buffer("kept", kept, persistent=False)

        def merged(self, base: Affine) -> Affine:
            return base.scaled(self.scale + self.kept)

        def forward(self, x: Tensor, base: Affine) -> Tensor:
            return base(x) * (self.scale + self.kept).to(x.dtype)


class TrainsInPlace(Honest):
    """Honest: adapters, and a backbone's own norms, which it declares."""

    def trained(self, model: nn.Module) -> Iterable[str]:
        return [name for name, _ in model.named_parameters() if "norm" in name]


class SharedAdapter(Adapter):
    """Adds a low-rank map in front of a layer; the projection belongs to the model, the rescaling to the layer."""

    def __init__(self, target: Target, projections: nn.Module) -> None:
        super().__init__()
        # In a tuple, past the registry: the model registers the module once, and everything that swaps its tensors
        # (a deep copy, functional_call) reaches them there.
        self.projections = (projections,)
        self.name = f"w{target.in_features}"
        self.rescale = nn.Parameter(torch.zeros(2, dtype=target.dtype, device=target.device))

    @property
    def projection(self) -> Tensor:
        return getattr(self.projections[0], self.name)

    def merged(self, base: Affine) -> Affine:
        up = self.projection.to(self.rescale.dtype)
        return base + base.linear.after(Affine((up * self.rescale) @ up.T))


class Projections(nn.Module):
    def __init__(self, widths: dict[str, int], target: Target) -> None:
        super().__init__()
        options = {"dtype": target.dtype, "device": target.device}
        for name, width in widths.items():
            self.register_parameter(name, nn.Parameter(torch.randn(width, 2, **options)))


class Shared(Method):
    """Honest: one projection for all layers of one width."""

    def __init__(self, targets: tuple[str, ...] = (r".*(qkv|fc1|fc2)",)) -> None:
        super().__init__(targets=targets)

    def shared(self, targets: Sequence[Target]) -> nn.Module:
        return Projections({f"w{target.in_features}": target.in_features for target in targets}, targets[0])

    def build(self, target: Target, shared: nn.Module | None = None) -> Adapter:
        assert shared is not None
        return SharedAdapter(target, shared)
