"""Traces one forward pass by operation: what it computes, saves for the backward pass and holds."""

import weakref
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

# The one fused attention that torch's table of operations lacks.
_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class Origin(Enum):
    """What a tensor was computed from."""

    WEIGHTS = "weights"
    DATA = "data"
    BOTH = "both"


class Call:
    """The first call of several identical blocks, and how many other calls it represents.

    Args:
        learns: Whether autograd records it.
        tokens: Its input.
    """

    def __init__(self, learns: bool, tokens: Tensor) -> None:
        self.learns, self.repeats = learns, 0
        self.input_key, self.input_bytes = _key(tokens), _num_bytes(tokens) if learns else 0
        self.kept: dict[int, int] = {}
        """Storage → bytes that autograd saves."""
        self.flops = self.fixed_bytes = 0
        self.result: tuple[torch.Size, torch.dtype] = (tokens.shape, tokens.dtype)

    @property
    def kept_bytes(self) -> int:
        """Bytes that autograd saves in this call."""
        return sum(self.kept.values())

    @property
    def inner_bytes(self) -> int:
        """The same without the call's input."""
        return self.kept_bytes - self.kept.get(self.input_key, 0)


class Trace(TorchDispatchMode):
    """Counts while it is active; has to be entered after the mode that the tensors belong to.

    It counts storages, not tensors: a view, or a tensor that is saved twice, adds nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.learned_flops = self.other_flops = 0
        """Operations that autograd records, and those without gradients, such as a teacher's."""
        self.widest_bytes = 0
        """The largest result of one operation in a block that learns."""
        self._live = dict.fromkeys(Origin, 0)
        """Bytes in use now."""
        self._last = self._live
        """Bytes in use at the last operation, before the forward pass freed its own tensors."""
        self._kept: dict[int, int] = {}
        self._outside: dict[int, int] = {}
        """The part of `_kept` that is still saved if blocks are checkpointed."""
        self._calls: dict[Any, Call] = {}
        self._inside: Call | None = None
        self._given: set[int] = set()
        self._origins: dict[int, Origin] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)

    @property
    def kept_bytes(self) -> int:
        """Bytes that autograd saves, except weights and what is computed from weights alone."""
        return sum(self._kept.values()) + self._of_repeats("kept_bytes")

    @property
    def checkpointed_bytes(self) -> int:
        """The same if only the input of each block is saved."""
        return sum(self._outside.values()) + self._of_repeats("input_bytes")

    @property
    def recomputed_bytes(self) -> int:
        """Bytes that the block that saves most then recomputes."""
        return max((call.inner_bytes for call in self._calls.values()), default=0)

    @property
    def fixed_bytes(self) -> int:
        """Bytes computed from weights alone at the last operation: autocast's copies."""
        return self._last[Origin.WEIGHTS] + self._of_repeats("fixed_bytes")

    @property
    def held_bytes(self) -> int:
        """Other bytes in use at the last operation that autograd does not save."""
        there = self._last[Origin.DATA] + self._last[Origin.BOTH]
        return there - sum(self._kept.values())

    def give(self, tensors: Iterable[Tensor], origin: Origin) -> None:
        """Register tensors that exist beforehand; they are not counted."""
        for tensor in tensors:
            self._given.add(key := _key(tensor))
            self._origins[key] = origin

    def watch(self, block: nn.Module) -> None:
        """Account for each call of a block; of identical calls, only the first is computed."""
        forward, kind = block.forward, _kind_of(block)

        def run(tokens: Tensor, *others: Tensor | None) -> Tensor:
            if tokens.requires_grad or any(each.requires_grad for each in block.parameters()):
                return count(tokens, *others)
            with torch.no_grad():  # a frozen block on frozen tokens: nothing is saved or repeated
                return count(tokens, *others)

        def count(tokens: Tensor, *others: Tensor | None) -> Tensor:
            layout = (tokens.shape, tokens.stride(), tokens.dtype)
            # A bias of attention is computed from weights alone, and chosen places are numbers:
            # they add nothing to the inputs.
            given = tuple(
                each is not None and (each.shape, each.dtype, each.requires_grad) for each in others
            )
            same = (kind, *layout, given, torch.is_grad_enabled())
            if same in self._calls:
                return self._repeat(self._calls[same], tokens)
            call = self._calls[same] = Call(torch.is_grad_enabled(), tokens)
            return self._compute(call, forward, tokens, *others)

        block.forward = run  # type: ignore[method-assign] - of a network that is then dropped

    def _compute(
        self, call: Call, forward: Callable[..., Tensor], tokens: Tensor, *others: Tensor | None
    ) -> Tensor:
        if call.learns:
            self._outside[call.input_key] = call.input_bytes
        flops, fixed = self.learned_flops + self.other_flops, self._live[Origin.WEIGHTS]
        self._inside = call
        result = forward(tokens, *others)
        self._inside = None
        call.flops = self.learned_flops + self.other_flops - flops
        call.fixed_bytes = self._live[Origin.WEIGHTS] - fixed
        call.result = (result.shape, result.dtype)
        return result

    def _repeat(self, call: Call, tokens: Tensor) -> Tensor:
        call.repeats += 1
        self._add_flops(call.flops)
        result: Any = _Repeated.apply(tokens, *call.result)
        return result

    def _of_repeats(self, name: str) -> int:
        return sum(call.repeats * getattr(call, name) for call in self._calls.values())

    def __enter__(self) -> "Trace":
        super().__enter__()
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)
        super().__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Compute an operation and count it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs = _tensors_in((args, kwargs))
        found = {self._origins.get(_key(tensor), Origin.DATA) for tensor in inputs}
        origin = found.pop() if len(found) == 1 else Origin.BOTH if found else Origin.DATA
        if origin is not Origin.DATA:  # operations on data alone prepare pixels, such as a blur
            self._add_flops(_flops_of(func._overloadpacket, args, kwargs, result))
        for tensor in _tensors_in(result):
            self._see(tensor.untyped_storage(), origin)
            if origin is Origin.BOTH and self._inside and self._inside.learns:
                self.widest_bytes = max(self.widest_bytes, _num_bytes(tensor))
        self._last = self._live.copy()
        return result

    def _add_flops(self, count: int) -> None:
        if torch.is_grad_enabled():
            self.learned_flops += count
        else:
            self.other_flops += count

    def _see(self, storage: torch.UntypedStorage, origin: Origin) -> None:
        """Count a storage from now until nothing refers to it."""
        key, size = storage._cdata, storage.nbytes()
        if key in self._given:
            return
        before = self._origins.get(key)
        if before is None:
            weakref.finalize(storage, self._forget, key, size)
        elif before is not origin:  # written into
            self._live[before] -= size
            origin = Origin.BOTH
        else:
            return
        self._origins[key] = origin
        self._live[origin] += size

    def _forget(self, key: int, size: int) -> None:
        self._live[self._origins.pop(key)] -= size

    def _keep(self, tensor: Tensor) -> Tensor:
        """Called by autograd with each tensor that it saves."""
        key = _key(tensor)
        if key in self._given or self._origins.get(key) is Origin.WEIGHTS:
            return tensor
        size = tensor.untyped_storage().nbytes()
        self._kept[key] = size
        (self._inside.kept if self._inside else self._outside)[key] = size
        return tensor


class _Repeated(torch.autograd.Function):
    """Represents a block that is not computed."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return tokens.new_empty(shape, dtype=dtype)


def _kind_of(block: nn.Module) -> Any:
    """A key that is equal for identical blocks: their modules, their attributes and shapes."""
    return tuple(
        (
            name,
            type(part),
            part.training,
            *((k, v) for k, v in vars(part).items() if isinstance(v, int | float | str | tuple)),
            *((k, p.shape, p.requires_grad) for k, p in part.named_parameters(recurse=False)),
        )
        for name, part in block.named_modules()
    )


def _flops_of(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    if operation is _CPU_ATTENTION:
        return sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
    formula = flop_registry.get(operation)
    return formula(*args, **kwargs, out_val=result) if formula else 0


def _tensors_in(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
