"""What every method must keep, as tests that a plugin inherits: `MethodContract`."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from lightning_petl.adapter import Adapter, Method
from lightning_petl.affine import Affine
from lightning_petl.errors import NotMergeable, PETLError, TargetNotFound
from lightning_petl.injection import inject, injection_of, trainable
from lightning_petl.merging import merge
from lightning_petl.store import load_adapter, plain_state, save_adapter
from lightning_petl.testing import checks, processes
from lightning_petl.testing.backbones import BACKBONES, Backbone, normal
from lightning_petl.testing.checks import difference, outputs, require, require_equal
from lightning_petl.wrappers import adapted_layers

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-1}
"""Largest difference, relative to the largest value, of two ways to compute one thing."""

_NOWHERE = "the method adapts no layer"
_each_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))


class MethodContract:
    """Tests that a method must pass; subclass it in a test file and give an instance of the method.

    ```python
    from lightning_petl.testing import MethodContract
    from petl_ia3 import IA3

    class TestIA3(MethodContract):
        method = IA3()
    ```

    The suite injects the method into small backbones, moves every parameter away from where it was initialised, and
    compares the fast paths with `Adapter.merged`. A backbone in which the method finds no layer, or which it refuses as
    not mergeable, is skipped; at least one must be left.

    Attributes:
        method: The instance to judge. Choose arguments that fit the backbones: their widths are multiples of 16.
        identity_at_init: Whether freshly injected adapters leave the model's outputs as they are. A method that starts
            elsewhere says so with False.
        backbones: The backbones by name. Tests of single layers use the first that the method adapts. To add one:
            ``backbones = {**BACKBONES, "mine": Backbone(build_it)}``.
    """

    method: ClassVar[Method]
    identity_at_init: ClassVar[bool] = True
    backbones: ClassVar[Mapping[str, Backbone]] = BACKBONES

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Runs a test with an argument ``backbone`` once for each of `backbones`."""
        if "backbone" in metafunc.fixturenames:
            metafunc.parametrize("backbone", self.backbones.values(), ids=list(self.backbones))

    def test_adapts_something(self) -> None:
        """The other tests skip what the method refuses; this one sees to it that something is left to judge."""
        if self.method.targets == ():
            pytest.skip("the method declares that it adapts no layer")
        require(self._adapted_backbone() is not None, f"{_NOWHERE} of any backbone here; add one to `backbones`")

    def test_arguments_are_json_and_build_the_method_again(self) -> None:
        """A file keeps nothing of a method but its name and its arguments."""
        arguments = json.loads(json.dumps(self.method.arguments))
        again = type(self.method)(**arguments)
        require(again.arguments == arguments, f"arguments {arguments} give a method with {again.arguments}")
        backbone = self._any_backbone()
        first, second = (self._injected(backbone, method=method, trained=False) for method in (self.method, again))
        require_equal(first.state_dict(), second.state_dict(), "built again from its arguments, the method differs")
        for model in (first, second):
            checks.train(model)
        same = torch.equal(outputs(first, backbone), outputs(second, backbone))
        require(same, "built again from its arguments, the method computes something else")

    def test_initialisation(self, backbone: Backbone) -> None:
        """A fresh adapter is the identity, or the test class says that it is not."""
        model = self._injected(backbone, trained=False)
        error = difference(outputs(model, backbone), outputs(backbone.build(torch.float64), backbone))
        if self.identity_at_init:
            require(error <= 1e-12, f"fresh adapters change the outputs by {error:.1e}, and identity_at_init is True")
        elif adapted_layers(model):
            require(error > 1e-12, "fresh adapters change nothing: leave identity_at_init at True")

    @_each_dtype
    def test_forward_is_the_merged_map(self, dtype: torch.dtype) -> None:
        """Values and gradients of the fast path are those of the definition; in training too, if nothing is random."""
        self._skip_what_does_not_fold()
        model = self._injected(self._adapted_backbone(), dtype)
        for path, layer in adapted_layers(model).items():
            x = normal((3, 5, layer.affine().in_features), seed=2).to(dtype)
            for training in (False, True):
                layer.train(training)
                first, second = (layer.adapter(x, layer.affine()) for _ in range(2))
                deterministic = torch.equal(first, second)
                require(deterministic or training, f"{path}: forward draws random numbers in evaluation")
                if deterministic:
                    checks.paths_agree(path, model, layer, x, TOLERANCE[dtype])

    def test_merged_is_pure(self) -> None:
        """`merged` changes neither operand nor the random state; the base has any dtype, and a bias or none."""
        self._skip_what_does_not_fold()
        model = self._injected(self._adapted_backbone(), torch.float32)
        for path, layer in adapted_layers(model).items():
            weight, bias = layer.affine().weight, torch.ones(layer.out_features)
            for base in (Affine(weight), Affine(weight, bias), Affine(weight.double(), bias.double())):
                checks.merged_is_pure(path, layer.adapter, base)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
    def test_merge_is_exact(self, backbone: Backbone, dtype: torch.dtype) -> None:
        """A merged model computes what it did with adapters, and is made of plain layers again."""
        model, plain = self._injected(backbone, dtype), backbone.build(dtype)
        expected = outputs(model, backbone)
        if adapted_layers(model):
            effect = difference(expected, outputs(plain, backbone))
            require(effect > 1e-3, "with every parameter changed, adapters have no effect: nothing can be compared")
        if not self.method.folds:
            self._is_refused(model)
            return
        certificate = merge(model)
        error = difference(outputs(model, backbone), expected)
        require(error <= TOLERANCE[dtype], f"merging changes the outputs by {error:.1e} (relative, {dtype})")
        checks.is_plain(model, plain, certificate.created)
        with pytest.raises(PETLError):
            merge(model)

    @classmethod
    def _is_refused(cls, model: nn.Module) -> None:
        """A method that does not fold is refused by name, and the model stays as it is."""
        before, types = checks.snapshot(model), checks.module_types(model)
        with pytest.raises(NotMergeable, match=type(cls.method).__name__):
            merge(model)
        require_equal(before, model.state_dict(), "a refused merge changed the model")
        require(checks.module_types(model) == types, "a refused merge replaced modules")

    def test_merged_model_compiles_and_exports(self) -> None:
        """After merging, torch.compile and torch.export take the model whole, as they take the plain backbone."""
        self._skip_what_does_not_fold()
        backbone = self._any_backbone()
        model = self._injected(backbone)
        merge(model)
        checks.compiles_and_exports(model, backbone)

    def test_a_failed_merge_changes_nothing(self) -> None:
        """If the last layer cannot be merged, the first is not either."""
        self._skip_what_does_not_fold()
        model = self._injected(self._adapted_backbone(), torch.float32)
        before, types = checks.snapshot(model), checks.module_types(model)
        last = list(adapted_layers(model).values())[-1]
        last.adapter.__dict__["merged"] = checks.cannot_merge
        with pytest.raises(NotMergeable):
            merge(model)
        require_equal(before, model.state_dict(), "a failed merge changed the model")
        require(checks.module_types(model) == types, "a failed merge replaced layers")

    def test_consolidated_is_equal_and_no_larger(self) -> None:
        """The form for storage is the same map in at most as many numbers, and has no smaller form of its own."""
        model = self._injected(self._adapted_backbone())
        for path, layer in adapted_layers(model).items():
            before = checks.snapshot(layer.adapter)
            small = layer.adapter.consolidated()
            require(isinstance(small, Adapter), f"{path}: consolidated() returns {type(small).__name__}, no Adapter")
            small.eval()
            require(checks.size(small) <= checks.size(layer.adapter), f"{path}: the consolidated form is larger")
            require_equal(before, layer.adapter.state_dict(), f"{path}: consolidated() changes the adapter")
            if self.method.folds:
                checks.consolidated_is_exact(path, layer, small)
            again = small.consolidated().state_dict()
            require_equal(small.state_dict(), again, f"{path}: consolidating twice gives another form")
        checks.consolidated_models_agree(model, self._any_backbone())

    def test_low_rank_is_what_merging_adds(self) -> None:
        """The form in which an adapter is exchanged with other packages, where it has one, is the definition again."""
        self._skip_what_does_not_fold()
        model, found = self._injected(self._adapted_backbone()), 0
        for path, layer in adapted_layers(model).items():
            bias = normal((layer.out_features,), seed=8)
            for base in (layer.affine(), Affine(layer.affine().weight), Affine(layer.affine().weight, bias)):
                found += checks.low_rank_is_exact(path, layer.adapter, base)
        if not found:
            pytest.skip("the method has no low-rank form")

    def test_file_round_trip(self, tmp_path: Path) -> None:
        """A file holds all that a method learned: loaded, it computes the same, and is written the same."""
        backbone = self._any_backbone()
        model, first = self._injected(backbone), tmp_path / "first.safetensors"
        digest, expected = save_adapter(model, first), outputs(model, backbone)
        loaded = load_adapter(backbone.build(torch.float64), first)
        plain, inputs = backbone.build(torch.float64), backbone.inputs(torch.float64)
        elsewhere = processes.run(processes.outputs_of_file, type(self.method), plain, inputs, first)
        for place, found in (("", outputs(loaded, backbone)), (" in another process", elsewhere)):
            error = difference(found, expected)
            require(error <= 1e-12, f"loaded from its file{place}, the model differs by {error:.1e}")
        again = save_adapter(loaded, tmp_path / "second.safetensors")
        require(again == digest, "a loaded adapter is written as another file")

    def test_two_processes_train_as_one(self, tmp_path: Path) -> None:
        """Distributed training on two halves of a batch gives the adapters of training on the whole."""
        backbone = self._any_backbone()
        model = self._injected(backbone)
        if not trainable(model):
            pytest.skip("the method trains nothing but the head, which tasks set free")
        if checks.is_random_in_training(model, backbone):
            pytest.skip("the method drops at random in training: give an instance without dropout to compare")
        method, arguments = type(self.method), self.method.arguments
        plain, batch = backbone.build(torch.float64), backbone.inputs(torch.float64)
        alone = processes.trained(method, arguments, plain, batch)
        together = processes.trained_by_two(method, arguments, plain, batch, tmp_path / "meeting")
        for name, tensor in alone.items():
            error = difference(together[name], tensor)
            require(error <= 1e-6, f"trained by two processes, {name} differs by {error:.1e}")

    def test_configuration_round_trip(self) -> None:
        """What the command line's parser writes as YAML builds the same method again."""
        again = checks.parsed_again(self.method)
        require(type(again) is type(self.method), f"YAML gives a {type(again).__name__}")
        require(again.arguments == self.method.arguments, f"YAML gives arguments {again.arguments}")

    def test_only_what_is_declared_trains(self) -> None:
        """An optimizer step changes adapters, shared modules and what `Method.trained` names, and nothing else."""
        backbone = self._any_backbone()
        model = self._injected(backbone, torch.float32)
        parameters, declared = trainable(model), injection_of(model).trained
        if not parameters:
            pytest.skip("the method trains nothing but the head, which tasks set free")
        frozen = {name: tensor.clone() for name, tensor in plain_state(model).items() if name not in declared}
        model.train()(backbone.inputs()).square().mean().backward()
        torch.optim.SGD(parameters.values(), lr=0.1).step()
        undeclared = sorted(trainable(model).keys() - parameters.keys())
        require(not undeclared, f"running the model sets free {undeclared[:3]}, which the method does not declare")
        after = {name: tensor for name, tensor in plain_state(model).items() if name not in declared}
        require_equal(frozen, after, "training changes a frozen tensor of the backbone")
        idle = [name for name, p in checks.added(model).items() if p.requires_grad and p.grad is None]
        require(not idle, f"{idle[:3]} get no gradient, and distributed training would wait for one")

    def test_copies_are_equal_and_independent(self) -> None:
        """A deep copy, a state dict in another model, and another model with the same method instance."""
        backbone = self._any_backbone()
        model, other = self._injected(backbone), self._injected(backbone, trained=False)
        copies = {"a deep copy": copy.deepcopy(model), "another model with the same method": other}
        own = {id(parameter) for parameter in model.parameters()}
        other.load_state_dict(model.state_dict())
        for name, copied in copies.items():
            require(own.isdisjoint(map(id, copied.parameters())), f"{name} shares parameters with the first")
            same = torch.equal(outputs(copied, backbone), outputs(model, backbone))
            require(same, f"{name} computes something else with the same tensors")

    def test_model_can_change_its_dtype(self) -> None:
        """A float32 model with adapters computes the same when it is moved to float64."""
        backbone = self._any_backbone()
        model = self._injected(backbone, torch.float32)
        expected = outputs(model, backbone)
        error = difference(outputs(model.to(torch.float64), backbone), expected)
        require(error <= TOLERANCE[torch.float32], f"moved to float64, the model differs by {error:.1e}")

    @_each_dtype
    def test_parameters_follow_their_layer(self, dtype: torch.dtype) -> None:
        """They are float64 for a float64 layer and float32 otherwise; outputs have the dtype of the inputs."""
        model = self._injected(self._adapted_backbone(), dtype)
        wanted = torch.float64 if dtype == torch.float64 else torch.float32
        wrong = [name for name, parameter in checks.added(model).items() if parameter.dtype != wanted]
        require(not wrong, f"{wrong[:3]} of a {dtype} layer should be {wanted}")
        if not self.method.folds:
            found = outputs(model, self._any_backbone()).dtype
            require(found == dtype, f"the model's output for {dtype} inputs is {found}")
            return
        for path, layer in adapted_layers(model).items():
            base = layer.affine()
            found = layer.adapter(normal((2, base.in_features), seed=4).to(dtype), base).dtype
            require(found == dtype, f"{path}: the output for {dtype} inputs is {found}")

    def test_meta_device(self) -> None:
        """Without memory, a method builds the same shapes: parameters are counted there."""
        backbone = self._any_backbone()
        with torch.device("meta"):
            plain = backbone.build()
        model, real = inject(plain, self.method), self._injected(backbone, torch.float32)
        wrong = [name for name, parameter in checks.added(model).items() if not parameter.is_meta]
        require(not wrong, f"{wrong[:3]} are not on their layer's device")
        found, expected = ({name: p.shape for name, p in checks.added(each).items()} for each in (model, real))
        require(found == expected, "parameters on the meta device have other names or shapes")

    def _skip_what_does_not_fold(self) -> None:
        if not self.method.folds:
            pytest.skip("the method declares that it does not fold")

    def _injected(
        self,
        backbone: Backbone | None,
        dtype: torch.dtype = torch.float64,
        method: Method | None = None,
        trained: bool = True,
    ) -> nn.Module:
        """A backbone with adapters, in evaluation mode; skips the test where the method refuses the backbone."""
        if backbone is None:
            pytest.skip(_NOWHERE)
        try:
            with checks.seeded():
                model = inject(backbone.build(dtype), method or self.method)
        except (TargetNotFound, NotMergeable) as error:
            pytest.skip(str(error))
        if trained:
            checks.train(model)
        return model.eval()

    @classmethod
    @cache
    def _adapted_backbone(cls) -> Backbone | None:
        """The first backbone of which the method adapts a layer."""
        for backbone in cls.backbones.values():
            try:
                if adapted_layers(inject(backbone.build(), cls.method)):
                    return backbone
            except (TargetNotFound, NotMergeable):
                continue
        return None

    def _any_backbone(self) -> Backbone:
        """The same, or the first backbone for a method that adapts no layer."""
        return self._adapted_backbone() or next(iter(self.backbones.values()))
