"""What an autoencoder does, as a flat list of operations on named maps.

Nothing here computes. Two kinds of operation suffice for Stable Diffusion's autoencoders and for what is put into
them: a convolution with everything that may stand before and after it, and attention. An operation names the maps
it reads and the one it makes, so that whoever runs the list may do so over a whole picture or tile by tile, and
knows when a map is no longer needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from enlarger.size import Size

if TYPE_CHECKING:
    from torch import Tensor

Activation = Callable[["Tensor"], "Tensor"]
"""A pointwise function that may change its argument in place and returns the result."""


def silu(tensor: Tensor) -> Tensor:
    """Sigmoid linear unit, x * sigmoid(x), in place."""
    return functional.silu(tensor, inplace=True)


@dataclass(frozen=True, eq=False)
class Norm:
    """Group norm over the channels of an operation's sources, all of them together (Wu and He 2018).

    Attributes:
        groups: How many groups the channels are cut into.
        weight: (C,), or None for 1.
        bias: (C,), or None for 0.
        eps: Added to the variance.
    """

    groups: int
    weight: Tensor | None
    bias: Tensor | None
    eps: float


@dataclass(frozen=True, eq=False)
class Kernel:
    """A convolution's weights and how it moves.

    Attributes:
        weight: (O, I, k, k).
        bias: (O,), or None.
        stride: 1 or 2.
        before: Rows and columns of zeros above and on the left.
        after: Rows and columns of zeros below and on the right.
    """

    weight: Tensor
    bias: Tensor | None
    stride: int = 1
    before: int = 0
    after: int = 0

    @property
    def side(self) -> int:
        """Rows and columns of the kernel."""
        return self.weight.shape[-1]

    def size(self, size: Size) -> Size:
        """Size of what comes out for what goes in."""
        return Size(*((side + self.before + self.after - self.side) // self.stride + 1 for side in size))

    @cached_property
    def phases(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Four 2x2 kernels that together are "nearest neighbour x2, then this 3x3".

        Of the three rows that the kernel sees on the enlarged map two are the same row of the small one, so their
        weights add up: even output rows see (-1: first; 0: second + third), odd ones (0: first + second; +1: third).
        The same for columns: 16 products for four outputs instead of 36.
        """
        rows = (
            torch.stack([self.weight[:, :, 0], self.weight[:, :, 1] + self.weight[:, :, 2]], 2),
            torch.stack([self.weight[:, :, 0] + self.weight[:, :, 1], self.weight[:, :, 2]], 2),
        )
        both = [
            torch.stack(parts, 3).contiguous(memory_format=torch.channels_last)
            for row in rows
            for parts in (
                (row[..., 0], row[..., 1] + row[..., 2]),
                (row[..., 0] + row[..., 1], row[..., 2]),
            )
        ]
        return both[0], both[1], both[2], both[3]


@dataclass(frozen=True, eq=False)
class Term:
    """A map that is added to a convolution's result, cell by cell, times a factor."""

    source: str
    factor: float = 1.0


@dataclass(frozen=True, eq=False)
class Convolve:
    """into = factor * after(kernel * enlarge(before(norm(sources)))) + terms.

    Attributes:
        into: The map it makes.
        sources: The maps it reads, side by side along the channels.
        kernel: None does not convolve.
        norm: Before everything else; zeros beyond the picture's border come after it.
        before: Activation behind the norm.
        after: Activation behind the kernel.
        enlarge: 1, or 2 for nearest neighbour x2 before the kernel, which is 3x3 then.
        factor: Of the convolution's result.
        terms: What is added to it.
    """

    into: str
    sources: tuple[str, ...]
    kernel: Kernel | None
    norm: Norm | None = None
    before: Activation | None = None
    after: Activation | None = None
    enlarge: int = 1
    factor: float = 1.0
    terms: tuple[Term, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        """All maps it looks at."""
        return (*self.sources, *(term.source for term in self.terms))


@dataclass(frozen=True, eq=False)
class Attend:
    """into = source + out(attention(norm(source))), every cell looking at every cell.

    Attributes:
        into: The map it makes.
        source: The map it reads.
        norm: Before the projections.
        query: (weight (C, C), bias) of the linear projections; so the others.
        key: See `query`.
        value: See `query`.
        out: See `query`.
        heads: How many the channels are cut into.
    """

    into: str
    source: str
    norm: Norm
    query: tuple[Tensor, Tensor | None]
    key: tuple[Tensor, Tensor | None]
    value: tuple[Tensor, Tensor | None]
    out: tuple[Tensor, Tensor | None]
    heads: int = 1

    @property
    def reads(self) -> tuple[str, ...]:
        """All maps it looks at."""
        return (self.source,)

    @property
    def sources(self) -> tuple[str, ...]:
        """As of `Convolve`."""
        return (self.source,)


Operation = Convolve | Attend


@dataclass(frozen=True)
class Shape:
    """A map's channels and size, and its cells per cell of the latent."""

    channels: int
    size: Size
    ratio: int

    @property
    def bytes(self) -> int:
        """Of the whole map in float32."""
        return 4 * self.channels * self.size.height * self.size.width


@dataclass(frozen=True)
class Program:
    """A list of operations.

    Attributes:
        operations: In the order they run.
        source: Name of the map that goes in.
        result: Name of the map that comes out.
        given: Names of further maps that are there before: features for insertions.
        kept: Names of maps that stay after the run: taps.
        ratio: Cells of `source` per cell of the latent.
        remade: Names of maps that are not worth storing tile by tile: each part is made again when it is read.
    """

    operations: tuple[Operation, ...]
    source: str
    result: str
    given: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    ratio: int = 1
    remade: frozenset[str] = field(default_factory=frozenset)

    def shapes(self, given: Mapping[str, Shape]) -> dict[str, Shape]:
        """Shapes of all maps.

        Args:
            given: Shapes of `source` and of the maps in `given`.

        Raises:
            ValueError: Maps that are put side by side or added differ in size, or channels do not fit a kernel.
        """
        shapes = dict(given)
        for operation in self.operations:
            first = shapes[operation.sources[0]]
            channels = sum(shapes[name].channels for name in operation.sources)
            size, ratio = first.size, first.ratio
            together = [shapes[name].size for name in operation.sources]
            if isinstance(operation, Convolve):
                size = Size(size.height * operation.enlarge, size.width * operation.enlarge)
                ratio *= operation.enlarge
                if operation.kernel is not None:
                    wanted = operation.kernel.weight.shape[1]
                    if channels != wanted:
                        raise ValueError(f"{operation.into}: a kernel for {wanted} channels, not {channels}")
                    size = operation.kernel.size(size)
                    ratio //= operation.kernel.stride
                    channels = operation.kernel.weight.shape[0]
                for term in operation.terms:
                    if shapes[term.source].size != size or shapes[term.source].channels != channels:
                        raise ValueError(f"{operation.into}: cannot add {term.source}, its shape is another one")
            if any(other != first.size for other in together):
                raise ValueError(f"{operation.into}: {', '.join(operation.sources)} differ in size")
            shapes[operation.into] = Shape(channels, size, ratio)
        return shapes


class Reader:
    """Reads modules into operations; the weights are shared where their type and layout already fit.

    Args:
        dtype: What the operations compute in.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def kernel(self, module: Any, before: int | None = None, after: int | None = None) -> Kernel:
        """A Conv2d's kernel; its own padding unless another is given.

        Raises:
            ValueError: A convolution of another kind: dilated, in groups, not square.
        """
        plain = (
            module.dilation == (1, 1)
            and module.groups == 1
            and module.padding_mode == "zeros"
            and len({*module.kernel_size}) == len({*module.stride}) == 1
        )
        if not plain or isinstance(module.padding, str) or len({*module.padding}) != 1:
            raise ValueError(f"cannot run {module} tile by tile")
        # Laid out for maps whose channels stand together; the module keeps the same numbers in the same place.
        module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        weight, bias = self._cast(module.weight), self._cast(module.bias)
        assert weight is not None
        padding = module.padding[0]
        return Kernel(
            weight,
            bias,
            module.stride[0],
            padding if before is None else before,
            padding if after is None else after,
        )

    def norm(self, module: Any) -> Norm:
        """A GroupNorm."""
        return Norm(module.num_groups, self._cast(module.weight), self._cast(module.bias), module.eps)

    def linear(self, module: Any) -> tuple[Tensor, Tensor | None]:
        """A Linear, or a 1x1 convolution in its place."""
        weight = self._cast(module.weight.flatten(1))
        assert weight is not None
        return weight, self._cast(module.bias)

    def _cast(self, tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().to(self.dtype)

    def resnet(self, block: Any, source: str, into: str) -> list[Operation]:
        """A ResnetBlock2D without time: source + conv2(silu(norm2(conv1(silu(norm1(source)))))).

        A shortcut with weights of its own comes first: `source` is done with after the first convolution then, and
        the statistics of a remade source are a by-product.
        """
        between, kept = f"{into}.between", source
        first = Convolve(between, (source,), self.kernel(block.conv1), self.norm(block.norm1), silu)
        operations: list[Operation] = [first]
        if getattr(block, "conv_shortcut", None) is not None:
            kept = f"{into}.shortcut"
            shortcut = Convolve(kept, (source,), self.kernel(block.conv_shortcut))
            operations.insert(0, shortcut)
        last = self.kernel(block.conv2)
        operations.append(Convolve(into, (between,), last, self.norm(block.norm2), silu, terms=(Term(kept),)))
        return operations

    def middle(self, block: Any, source: str) -> tuple[list[Operation], str]:
        """A UNetMidBlock2D: a resnet, attention, a resnet."""
        operations = self.resnet(block.resnets[0], source, "middle.0")
        source = "middle.0"
        for number, resnet in enumerate(block.resnets[1:], 1):
            attention = block.attentions[number - 1] if number <= len(block.attentions) else None
            if attention is not None:
                operations.append(
                    Attend(
                        f"middle.{number}.attention",
                        source,
                        self.norm(attention.group_norm),
                        self.linear(attention.to_q),
                        self.linear(attention.to_k),
                        self.linear(attention.to_v),
                        self.linear(attention.to_out[0]),
                        attention.heads,
                    )
                )
                source = f"middle.{number}.attention"
            operations += self.resnet(resnet, source, f"middle.{number}")
            source = f"middle.{number}"
        return operations, source

    def head(self, net: Any, source: str, last: Any | None) -> list[Operation]:
        """conv_norm_out, silu, conv_out, and the pointwise convolution behind the encoder."""
        operations: list[Operation] = [
            Convolve("out", (source,), self.kernel(net.conv_out), self.norm(net.conv_norm_out), silu)
        ]
        if last is not None:
            operations.append(Convolve("moments", ("out",), self.kernel(last)))
        return operations


def encoder(vae: Any, reader: Reader, taps: Iterable[int], factor: int) -> Program:
    """An AutoencoderKL's encoder: picture -> "moments" (mean and log variance).

    Args:
        vae: The autoencoder.
        reader: Reads its modules.
        taps: Levels whose map stays, 0 the finest: behind the level's resnets, before its downsampler.
        factor: Pixels per latent cell.
    """
    net = vae.encoder
    kept = tuple(f"down.{level}" for level in sorted(set(taps)))
    operations: list[Operation] = [Convolve("start", ("picture",), reader.kernel(net.conv_in))]
    source = "start"
    for level, block in enumerate(net.down_blocks):
        for number, resnet in enumerate(block.resnets):
            last = number == len(block.resnets) - 1
            into = f"down.{level}" if last else f"down.{level}.{number}"
            operations += reader.resnet(resnet, source, into)
            source = into
        for sampler in block.downsamplers or ():
            # diffusers pads by (0, 1, 0, 1) here; a sampler that pads by itself keeps its own.
            own = sampler.conv.padding[0]
            kernel = reader.kernel(sampler.conv, own, own if own else 1)
            operations.append(Convolve(f"down.{level}.half", (source,), kernel))
            source = f"down.{level}.half"
    middle, source = reader.middle(net.mid_block, source)
    operations += middle
    quant = getattr(vae, "quant_conv", None)
    operations += reader.head(net, source, quant)
    result = "out" if quant is None else "moments"
    return Program(tuple(operations), "picture", result, kept=kept, ratio=factor)


def decoder(
    vae: Any, reader: Reader, insert: Callable[[int, str], tuple[list[Operation], str]], *, remake: bool
) -> Program:
    """An AutoencoderKL's decoder: latent -> picture.

    Args:
        vae: The autoencoder.
        reader: Reads its modules.
        insert: For a level (0 the coarsest) and the map behind its resnets: the operations that are put there and
            the map they make; no operations and the same map where there is nothing.
        remake: Whether enlarged maps are made again for each reader, not stored. They are the largest of all, twice
            a level's other maps, and made with few products (`Kernel.phases`).
    """
    net = vae.decoder
    operations: list[Operation] = []
    source = "latent"
    if getattr(vae, "post_quant_conv", None) is not None:
        operations.append(Convolve("unquantised", (source,), reader.kernel(vae.post_quant_conv)))
        source = "unquantised"
    operations.append(Convolve("start", (source,), reader.kernel(net.conv_in)))
    middle, source = reader.middle(net.mid_block, "start")
    operations += middle
    remade: set[str] = set()
    for level, block in enumerate(net.up_blocks):
        for number, resnet in enumerate(block.resnets):
            into = f"up.{level}.{number}"
            operations += reader.resnet(resnet, source, into)
            source = into
        inserted, source = insert(level, source)
        operations += inserted
        for sampler in block.upsamplers or ():
            into = f"up.{level}.double"
            operations.append(Convolve(into, (source,), reader.kernel(sampler.conv), enlarge=2))
            source = into
            following = net.up_blocks[level + 1].resnets[0] if level + 1 < len(net.up_blocks) else None
            # Without a shortcut of its own the next resnet adds the map itself, at its end: it is stored then.
            if remake and getattr(following, "conv_shortcut", None) is not None:
                remade.add(into)
    operations += reader.head(net, source, None)
    return Program(tuple(operations), "latent", "out", remade=frozenset(remade))
