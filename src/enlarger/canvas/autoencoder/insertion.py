"""Reads a module that is put into the decoder into operations.

An insertion is a plain torch module whose `forward(features, state)` takes the tapped features and the decoder's map,
both (1, C, H, W) and of one size, and gives the decoder's new map. It may be built of Conv2d, GroupNorm, SiLU,
LeakyReLU, ReLU (modules or functions), Sequential, cat along the channels, sums, and products with numbers; its
forward is followed symbolically (torch.fx), so it is written once and runs whole as it stands. Numbers that it reads
from its own attributes are taken as they are when the run begins.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.nn import functional

from enlarger.canvas.autoencoder.operations import Activation, Convolve, Norm, Operation, Reader, Term, silu

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class _Value:
    """What a node of the graph stands for, as long as no operation is written for it.

    `kernel is None`, no norm, no activation: the maps named, side by side. Otherwise one operation in the making.
    """

    sources: tuple[str, ...] = ()
    norm: Norm | None = None
    before: Activation | None = None
    kernel: Any = None
    after: Activation | None = None
    factor: float = 1.0
    terms: tuple[Term, ...] = ()

    @property
    def plain(self) -> bool:
        return self == _Value(self.sources)


def operations_of(
    module: nn.Module, reader: Reader, features: str, state: str, prefix: str
) -> tuple[list[Operation], str]:
    """Follow a module's forward.

    Args:
        module: See the top of this file.
        reader: Reads its layers.
        features: Name of the map that is its first argument.
        state: Name of the map that is its second.
        prefix: Of the names of the maps it makes.

    Returns:
        Its operations and the name of the map they end with.

    Raises:
        ValueError: It does something that cannot be run tile by tile; names it.
    """
    return _Lowering(module, reader, prefix).run((features, state))


class _Lowering:
    def __init__(self, module: nn.Module, reader: Reader, prefix: str) -> None:
        self.graph = fx.Tracer().trace(module)
        self.modules = dict(module.named_modules())
        self.reader = reader
        self.prefix = prefix
        self.operations: list[Operation] = []

    def run(self, arguments: tuple[str, ...]) -> tuple[list[Operation], str]:
        given = iter(arguments)
        values: dict[fx.Node, _Value] = {}
        for node in self.graph.nodes:
            if node.op == "placeholder":
                values[node] = _Value((next(given),))
            elif node.op == "output":
                return self.operations, self._stored(values[node.args[0]])
            else:
                made = self._node(node, values)
                values[node] = _Value((self._stored(made),)) if len(node.users) > 1 and not made.plain else made
        raise AssertionError("a graph without an output")

    def _node(self, node: fx.Node, values: dict[fx.Node, _Value]) -> _Value:
        def known(argument: Any) -> Any:
            if isinstance(argument, fx.Node):
                return values[argument]
            if isinstance(argument, (list, tuple)):
                return tuple(known(each) for each in argument)
            return argument

        target = self.modules[str(node.target)] if node.op == "call_module" else node.target
        arguments = [known(each) for each in node.args]
        options = {name: known(each) for name, each in node.kwargs.items()}
        result = self._apply(target, arguments, options)
        if result is None:
            raise ValueError(f"{target} (in {node.name}) cannot be run tile by tile")
        return result

    def _apply(self, target: Any, arguments: list[Any], options: dict[str, Any]) -> _Value | None:
        if isinstance(target, nn.Conv2d):
            return replace(self._unconvolved(arguments[0]), kernel=self.reader.kernel(target))
        if isinstance(target, nn.GroupNorm):
            return replace(self._plain(arguments[0]), norm=self.reader.norm(target))
        if isinstance(target, (nn.Identity, nn.Dropout)):
            return self._value(arguments[0])
        activation = _activation(target, arguments, options)
        if activation is not None:
            return self._activated(arguments[0], activation)
        if target in (torch.cat, torch.concat):
            if (options.get("dim", arguments[1] if len(arguments) > 1 else 0)) not in (1, -3):
                return None
            return _Value(tuple(name for each in arguments[0] for name in self._plain(each).sources))
        if target in (operator.add, operator.iadd, torch.add, "add", "add_") and not options:
            return self._sum(arguments[0], arguments[1])
        if target in (operator.mul, operator.imul, torch.mul, "mul", "mul_"):
            number = next((each for each in arguments if isinstance(each, (int, float))), None)
            value = next((each for each in arguments if isinstance(each, _Value)), None)
            return None if number is None or value is None else self._scaled(value, float(number))
        return None

    def _value(self, value: Any) -> _Value:
        if not isinstance(value, _Value):
            raise ValueError(f"{value!r} stands where a map is expected")
        return value

    def _plain(self, argument: Any) -> _Value:
        """The value as stored maps."""
        value = self._value(argument)
        return value if value.plain else _Value((self._stored(value),))

    def _unconvolved(self, argument: Any) -> _Value:
        """The value as what a kernel may read: maps, normed and activated."""
        value = self._value(argument)
        ready = value.kernel is None and not value.terms and value.factor == 1
        return value if ready else _Value((self._stored(value),))

    def _activated(self, argument: Any, activation: Activation) -> _Value:
        value = self._value(argument)
        if value.terms or value.factor != 1 or value.after is not None or (value.kernel is None and value.before):
            value = _Value((self._stored(value),))
        if value.kernel is None:
            return replace(value, before=activation)
        return replace(value, after=activation)

    def _scaled(self, value: _Value, number: float) -> _Value:
        terms = tuple(Term(term.source, term.factor * number) for term in value.terms)
        return replace(value, factor=value.factor * number, terms=terms)

    def _sum(self, first: Any, second: Any) -> _Value:
        one, other = self._value(first), self._value(second)
        if self._terms(other) is None:
            one, other = other, one
        # At most one of the two stays in the making; the other is added to it, as a stored map if it has to be.
        if self._terms(one) is not None and not one.plain:
            one = _Value((self._stored(one),))
        added = self._terms(other) or (Term(self._stored(other)),)
        return replace(one, terms=(*one.terms, *added))

    def _terms(self, value: _Value) -> tuple[Term, ...] | None:
        """The value as a sum of stored maps; None where it is more than that."""
        if not replace(value, factor=1.0, terms=()).plain or len(value.sources) != 1:
            return None
        return (Term(value.sources[0], value.factor), *value.terms)

    def _stored(self, value: _Value) -> str:
        """Write the operation and name its map."""
        if value.plain and len(value.sources) == 1:
            return value.sources[0]
        into = f"{self.prefix}.{len(self.operations)}"
        self.operations.append(
            Convolve(
                into,
                value.sources,
                value.kernel,
                value.norm,
                value.before,
                value.after,
                factor=value.factor,
                terms=value.terms,
            )
        )
        return into


def _activation(target: Any, arguments: list[Any], options: dict[str, Any]) -> Activation | None:
    if isinstance(target, nn.SiLU) or target is functional.silu:
        return silu
    if isinstance(target, nn.ReLU) or target in (functional.relu, torch.relu):
        return torch.relu_
    if isinstance(target, nn.LeakyReLU):
        return partial(_leaky, slope=target.negative_slope)
    if target is functional.leaky_relu:
        return partial(_leaky, slope=options.get("negative_slope", arguments[1] if len(arguments) > 1 else 0.01))
    return None


def _leaky(tensor: Tensor, slope: float) -> Tensor:
    return functional.leaky_relu(tensor, slope, inplace=True)
