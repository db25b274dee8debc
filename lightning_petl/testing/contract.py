"""What every method must keep, as tests that a plugin inherits: `MethodContract`."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, NoReturn

import pytest
import torch
from torch import Tensor, nn

from lightning_petl import tensorfile
from lightning_petl.adapter import Adapter, Method
from lightning_petl.affine import Affine
from lightning_petl.errors import NotMergeable, PETLError, TargetNotFound
from lightning_petl.injection import SHARED, Adapted, adapted_layers, inject, injection_of, trainable
from lightning_petl.layers import read
from lightning_petl.merging import merge
from lightning_petl.store import load_adapter, plain_state, save_adapter
from lightning_petl.testing.backbones import BACKBONES, Backbone, add_noise, normal

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-1}
"""Largest difference, relative to the largest value, of two ways to compute one thing."""

_each_backbone = pytest.mark.parametrize("backbone", BACKBONES)
_each_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))


class MethodContract:
    """Tests that a method must pass; subclass it in a test file and give an instance of the method.

    ```python
    from lightning_petl.testing import MethodContract
    from petl_ia3 import IA3

    class TestIA3(MethodContract):
        method = IA3()
    ```

    The suite injects the method into small backbones (all widths are multiples of 16), moves every parameter away from
    where it was initialised, and compares the fast paths with `Adapter.merged`. A backbone in which the method finds no
    layer, or which it refuses as not mergeable, is skipped; at least one must be left.

    Attributes:
        method: The instance to judge. Choose arguments that fit widths of 16 and more.
        identity_at_init: Whether freshly injected adapters leave the model's outputs as they are. A method that starts
            elsewhere says so with False.
        backbones: Further backbones by name that the per-layer tests may use, tried before the suite's own, for a
            method whose targets exist in none of them.
    """

    method: ClassVar[Method]
    identity_at_init: ClassVar[bool] = True
    backbones: ClassVar[Mapping[str, Backbone]] = {}

    def test_adapts_something(self) -> None:
        """The other tests skip what the method refuses; this one sees to it that something is left to judge."""
        if self.method.targets == ():
            pytest.skip("the method declares that it adapts no layer")
        if self._home() is None:
            fail("the method adapts no layer of any backbone here; add one that it adapts to `backbones`")

    def test_arguments_are_json_and_build_the_method_again(self) -> None:
        """A file keeps nothing of a method but its name and its arguments."""
        arguments = json.loads(json.dumps(self.method.arguments))
        again = type(self.method)(**arguments)
        require(again.arguments == arguments, f"arguments {arguments} give a method with {again.arguments}")
        backbone = self._home() or BACKBONES["toy"]
        models = []
        for method in (self.method, again):
            with seeded():
                models.append(inject(backbone.build(torch.float64), method))
        equal_tensors(models[0].state_dict(), models[1].state_dict(), "the method built again has other tensors")
        for model in models:
            perturb(model)
        found, expected = (outputs(model, backbone) for model in models)
        require(torch.equal(found, expected), "the method built again from its arguments computes something else")

    @_each_backbone
    def test_initialisation(self, backbone: str) -> None:
        """A fresh adapter is the identity, or the test class says that it is not."""
        plain = BACKBONES[backbone].build(torch.float64)
        expected = outputs(plain, BACKBONES[backbone])
        model = self._injected(BACKBONES[backbone], perturbed=False)
        error = difference(outputs(model, BACKBONES[backbone]), expected)
        if self.identity_at_init:
            require(error <= 1e-12, f"fresh adapters change the outputs by {error:.1e} (identity_at_init is True)")
        elif adapted_layers(model):
            require(error > 1e-12, "fresh adapters change nothing: leave identity_at_init at True")

    @_each_dtype
    def test_forward_is_the_merged_map(self, dtype: torch.dtype) -> None:
        """Values and gradients of the fast path are those of the definition; in training too, if nothing is random."""
        model = self._injected(self._home_or_skip(), dtype)
        for path, layer in adapted_layers(model).items():
            x = normal((3, 5, layer.in_features), seed=2).to(dtype).requires_grad_()
            for training in (False, True):
                layer.train(training)
                first, second = layer.adapter(x, read(layer.base)), layer.adapter(x, read(layer.base))
                if not training:
                    require(torch.equal(first, second), f"{path}: forward draws random numbers in evaluation")
                if torch.equal(first, second):
                    compare_paths(path, model, layer, x, TOLERANCE[dtype])

    def test_merged_is_pure(self) -> None:
        """`merged` changes neither operand nor the random state, and takes a base in any dtype, with or without bias."""
        model = self._injected(self._home_or_skip(), torch.float32)
        for path, layer in adapted_layers(model).items():
            weight, bias = read(layer.base).weight, torch.ones(layer.out_features)
            for base in (Affine(weight), Affine(weight, bias), Affine(weight.double(), bias.double())):
                check_pure(path, layer.adapter, base)

    @_each_backbone
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
    def test_merge_is_exact(self, backbone: str, dtype: torch.dtype) -> None:
        """A merged model computes what it did with adapters, and is made of plain layers again."""
        model = self._injected(BACKBONES[backbone], dtype)
        plain = BACKBONES[backbone].build(dtype)
        expected = outputs(model, BACKBONES[backbone])
        if adapted_layers(model):
            effect = difference(expected, outputs(plain, BACKBONES[backbone]))
            require(effect > 1e-3, "adapters with all parameters changed have no effect, so nothing can be compared")
        created = merge(model).created
        error = difference(outputs(model, BACKBONES[backbone]), expected)
        require(error <= TOLERANCE[dtype], f"merging changes the outputs by {error:.1e} (relative, {dtype})")
        check_plain(model, plain, created)
        with pytest.raises(PETLError):
            merge(model)

    def test_a_failed_merge_changes_nothing(self) -> None:
        """If the last layer cannot be merged, the first is not either."""
        home = self._home_or_skip()
        model = self._injected(home, torch.float32)
        before, types = snapshot(model), types(model)
        last = list(adapted_layers(model).values())[-1]
        last.adapter.__dict__["merged"] = cannot_merge
        with pytest.raises(NotMergeable):
            merge(model)
        equal_tensors(before, model.state_dict(), "a failed merge changed the model")
        require(types(model) == types, "a failed merge replaced layers")
        del last.adapter.__dict__["merged"]
        merge(model)

    def test_consolidated_is_equal_and_no_larger(self) -> None:
        """The form for storage is the same map in at most as many numbers, and has no smaller form of its own."""
        model = self._injected(self._home_or_skip(), torch.float64)
        for path, layer in adapted_layers(model).items():
            before, base = snapshot(layer.adapter), read(layer.base)
            small = layer.adapter.consolidated().eval()
            require(isinstance(small, Adapter), f"{path}: consolidated() returns {type(small).__name__}, no Adapter")
            require(size(small) <= size(layer.adapter), f"{path}: the consolidated form is larger")
            equal_tensors(before, layer.adapter.state_dict(), f"{path}: consolidated() changes the adapter")
            x = normal((3, layer.in_features), seed=3)
            for found in (small.merged(base)(x), small(x, base)):
                error = difference(found, layer.adapter.merged(base)(x))
                require(error <= 1e-12, f"{path}: the consolidated form differs by {error:.1e}")
            again = small.consolidated().state_dict()
            equal_tensors(small.state_dict(), again, f"{path}: consolidating twice gives another form")

    def test_file_round_trip(self, tmp_path: Path) -> None:
        """A file holds all that a method learned: loaded, it computes the same, and is written the same."""
        backbone = self._home() or BACKBONES["toy"]
        model = self._injected(backbone)
        digest = save_adapter(model, tmp_path / "first.safetensors")
        loaded = load_adapter(backbone.build(torch.float64), tmp_path / "first.safetensors")
        error = difference(outputs(loaded, backbone), outputs(model, backbone))
        require(error <= 1e-12, f"loaded from its file, the model differs by {error:.1e}")
        again = save_adapter(loaded, tmp_path / "second.safetensors")
        require(again == digest, "a loaded adapter is written as another file")

    def test_only_what_is_declared_trains(self) -> None:
        """An optimizer step changes adapters, shared modules and what `Method.trained` names, and nothing else."""
        backbone = self._home() or BACKBONES["toy"]
        model = self._injected(backbone, torch.float32)
        declared, added = set(injection_of(model).trained), added(model)
        frozen = {name: tensor.clone() for name, tensor in plain_state(model).items() if name not in declared}
        model.train()
        parameters = trainable(model)
        if not parameters:
            pytest.skip("the method trains nothing but the head, which tasks set free")
        model(backbone.inputs()).square().mean().backward()
        torch.optim.SGD(parameters.values(), lr=0.1).step()
        undeclared = sorted(trainable(model).keys() - parameters.keys())
        require(not undeclared, f"running the model sets free {undeclared[:3]}, which the method does not declare")
        kept = {name: plain_state(model)[name] for name in frozen}
        equal_tensors(frozen, kept, "training changes a frozen tensor of the backbone")
        idle = [name for name, parameter in added.items() if parameter.requires_grad and parameter.grad is None]
        require(not idle, f"{idle[:3]} get no gradient; distributed training would wait for it")

    def test_copies_are_independent_and_equal(self) -> None:
        """A deep copy, a state dict in a new model, and a second model with the same method instance."""
        backbone = self._home() or BACKBONES["toy"]
        model, other = self._injected(backbone), self._injected(backbone, perturbed=False)
        expected = outputs(model, backbone)
        twin = copy.deepcopy(model)
        shared = {id(parameter) for parameter in model.parameters()}
        for copied, how in ((twin, "a deep copy"), (other, "a second model")):
            require(shared.isdisjoint(map(id, copied.parameters())), f"{how} shares parameters with the first")
        other.load_state_dict(model.state_dict())
        for copied, how in ((twin, "a deep copy"), (other, "a model with its state dict")):
            require(torch.equal(outputs(copied, backbone), expected), f"{how} computes something else")

    def test_model_can_change_its_dtype(self) -> None:
        """A float32 model with adapters works when it is moved to float64."""
        backbone = self._home_or_skip()
        model = self._injected(backbone, torch.float32)
        expected = outputs(model, backbone)
        error = difference(outputs(model.to(torch.float64), backbone, torch.float64), expected)
        require(error <= TOLERANCE[torch.float32], f"moved to float64, the model differs by {error:.1e}")

    @_each_dtype
    def test_parameters_follow_their_layer(self, dtype: torch.dtype) -> None:
        """They are float64 for a float64 layer and float32 otherwise; outputs have the dtype of the inputs."""
        backbone = self._home_or_skip()
        model = self._injected(backbone, dtype)
        wanted = torch.float64 if dtype == torch.float64 else torch.float32
        wrong = [name for name, parameter in added(model).items() if parameter.dtype != wanted]
        require(not wrong, f"{wrong[:3]} of a {dtype} layer should be {wanted}")
        for path, layer in adapted_layers(model).items():
            found = layer.adapter(normal((2, layer.in_features), seed=4).to(dtype), read(layer.base)).dtype
            require(found == dtype, f"{path}: the output for {dtype} inputs is {found}")

    def test_meta_device(self) -> None:
        """Without memory, a method builds the same shapes: parameters are counted there."""
        backbone = self._home_or_skip()
        with torch.device("meta"):
            model = inject(backbone.build(), self.method)
        real = self._injected(backbone, torch.float32)
        wrong = [name for name, parameter in added(model).items() if not parameter.is_meta]
        require(not wrong, f"{wrong[:3]} are not on their layer's device")
        found, expected = ({name: p.shape for name, p in added(m).items()} for m in (model, real))
        require(found == expected, "parameters on the meta device have other names or shapes")

    def _injected(self, backbone: Backbone, dtype: torch.dtype = torch.float64, perturbed: bool = True) -> nn.Module:
        """A backbone with adapters, in evaluation mode; skips the test where the method refuses the backbone."""
        try:
            with seeded():
                model = inject(backbone.build(dtype), self.method)
        except (TargetNotFound, NotMergeable) as error:
            pytest.skip(str(error))
        if perturbed:
            perturb(model)
        return model.eval()

    def _home(self) -> Backbone | None:
        """The first backbone of which the method adapts a layer."""
        for backbone in (*self.backbones.values(), *BACKBONES.values()):
            try:
                if adapted_layers(inject(backbone.build(), self.method)):
                    return backbone
            except (TargetNotFound, NotMergeable):
                continue
        return None

    def _home_or_skip(self) -> Backbone:
        home = self._home()
        if home is None:
            pytest.skip("the method adapts no layer")
        return home
