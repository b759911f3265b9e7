"""A stand-in for a GPU: tensors that lie on CUDA by their own account, and a log of where the host waits for them.

Host and device are one on a CPU, so code that waits at every step looks fine there. Here a tensor on the device wraps a
tensor of the CPU and gives `cuda:0` as its device. Code that chooses by device takes its way for CUDA. The log has
every copy between host and device, every value that the host reads, every operation whose result has a shape that
depends on data, and the number of operations that would each take a kernel.

Limits: to the C++ code of torch these tensors are on no known device, so attention of the towers is computed by
products. Waits inside of an operation of CUDA that its name does not show are not seen. Times mean nothing here.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)

PLACES = (DEVICE.type, "meta")
"""Where the stand-in lies, to code and to torch."""

READS = "reads a value"
TO_HOST = "copies to the host"
TO_DEVICE = "copies to the device and waits"
SHAPE = "has a shape that depends on data"
MASK = "indexes by a mask"
KINDS = (READS, TO_HOST, TO_DEVICE, SHAPE, MASK)
"""Why the host waits."""

READING = {"_local_scalar_dense", "equal", "is_nonzero"}
SHAPED = {
    "nonzero",
    "masked_select",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "unique_dim_consecutive",
    "bincount",
    "masked_scatter_backward",  # it selects by the mask
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
FREE = {"detach", "detach_", "alias", "lift_fresh", "_unsafe_view", "empty", "empty_like", "new_empty", "set_"}
"""Operations without a kernel, besides those whose result is a view by their schema."""


class Log:
    """What was asked of the device.

    Args:
        refuse: Called with the reason and the operation at each wait; may raise.

    Attributes:
        waits: How often the host waited, by reason and operation.
        kernels: How often the device computed, by operation.
        conversions: The shapes of all tensors that were copied to a wider type.
    """

    def __init__(self, refuse: Callable[[str, str], None] | None = None) -> None:
        self.waits: Counter[tuple[str, str]] = Counter()
        self.kernels: Counter[str] = Counter()
        self.conversions: list[torch.Size] = []
        self._refuse = refuse

    def wait(self, reason: str, name: str) -> None:
        """Notes that the host waits."""
        self.waits[reason, name] += 1
        if self._refuse is not None:
            self._refuse(reason, name)


class DeviceTensor(Tensor):
    """A tensor on the device; `inner` has its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "DeviceTensor":
        """Wraps a tensor of the CPU. For torch itself it lies on `meta`, whose backward pass runs in this thread."""
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device("meta"),
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The device that code sees."""
        return DEVICE

    def __repr__(self, **_: Any) -> str:
        """Shows the values."""
        return f"DeviceTensor({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Device(TorchDispatchMode):
    """Computes on the stand-in also what torch makes of numbers alone, such as the 0 in `values.where(mask, 0)`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        asks = any(isinstance(each, DeviceTensor) for each in tree_leaves((args, kwargs)))
        if not asks and not (kwargs.get("device") is not None and torch.device(kwargs["device"]).type in PLACES):
            return func(*args, **kwargs)
        with self:  # in inference mode, operations that consist of others arrive whole
            parts = func.decompose(*args, **kwargs)
        return _run(func, args, kwargs) if parts is NotImplemented else parts


class _Host(TorchFunctionMode):
    """Computes what the host asks of torch about the device, and torch without CUDA would refuse."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "tolist" and isinstance(args[0], DeviceTensor):
            _copied(TO_HOST, name, False)
            return args[0].inner.tolist()
        if name in {"__getitem__", "__setitem__"} and isinstance(args[0], DeviceTensor):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            return func(args[0], tuple(map(_listed, index)), *args[2:])
        if name == "to" and any(map(_names_device, (*args[1:], kwargs.get("device")))):
            return _to_device(*args, **kwargs)
        if name in {"tensor", "as_tensor"} and _names_device(kwargs.get("device")):
            _copied(TO_DEVICE, name, False)
            return DeviceTensor(func(*args, **{**kwargs, "device": torch.device("cpu")}))
        return func(*args, **kwargs)


_logs: list[Log] = []


@contextmanager
def device_stand_in(log: Log) -> Iterator[None]:
    """Lets code use the stand-in, and writes what it asks of it to a log."""
    with ExitStack() as stack:
        if not _logs:
            # CUDA is not there to be initialized; what is made on it reaches `_Device`.
            stack.enter_context(patch.object(torch.cuda, "_lazy_init", lambda: None))
            stack.enter_context(_Host())
            stack.enter_context(_Device())
        _logs.append(log)
        stack.callback(_logs.pop)
        yield


def on_device(module: nn.Module) -> nn.Module:
    """Moves the parameters and buffers of a module to the stand-in, in place."""
    moved: dict[int, Any] = {}  # weights may be tied
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None and id(parameter) not in moved:
                inner = DeviceTensor(parameter.detach())
                moved[id(parameter)] = nn.Parameter(inner, requires_grad=parameter.requires_grad)
            if parameter is not None:
                each._parameters[name] = moved[id(parameter)]
        for name, buffer in each._buffers.items():
            if buffer is not None:
                each._buffers[name] = DeviceTensor(buffer)
    return module


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """Computes an operation of the device."""
    name = func.overloadpacket.__name__
    _note(func, name, args, kwargs)
    if name == "_fused_sdp_choice":
        return int(SDPBackend.MATH.value)
    target = kwargs.get("device")
    inner = {key: tree_map(_inner, value) for key, value in kwargs.items() if key != "device"}
    if target is not None:
        inner["device"] = torch.device("cpu")
    result = EMULATED.get(name, func)(*tree_map(_inner, args), **inner)
    if target is not None and torch.device(target).type == "cpu":
        return result
    if func._schema.is_mutable:  # the result is the very tensor that was written
        return args[0] if "out" not in kwargs else kwargs["out"]
    # A view of a tensor from outside of inference mode is none of inference mode, as for any device.
    with torch.inference_mode(torch.is_inference_mode_enabled() and not (func.is_view and not args[0].is_inference())):
        return tree_map(lambda each: DeviceTensor(each) if isinstance(each, Tensor) else each, result)


def _flash(
    query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0, causal: bool = False, *_: bool, scale: float
) -> tuple[Any, ...]:
    """Flash attention of CUDA in half precision; the state of its random numbers is empty."""
    single = (tensor.float() for tensor in (query, key, value))
    run = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output, total = run(*single, dropout, causal, scale=scale)
    none = torch.empty(0)
    return output.to(query.dtype), total, none, none, query.shape[2], key.shape[2], none, none, none


def _flash_backward(*args: Any, scale: float) -> tuple[Tensor, ...]:
    """The same, backward: from gradient, queries, keys, values, output and log-sum-exp."""
    single = [tensor.float() for tensor in args[:5]]
    run = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    dropout, causal = args[10:12]
    return tuple(grad.to(args[1].dtype) for grad in run(*single, args[5], dropout, causal, scale=scale))


EMULATED: dict[str, Callable[..., Any]] = {
    "_scaled_dot_product_flash_attention": _flash,
    "_scaled_dot_product_flash_attention_backward": _flash_backward,
}


def _to_device(tensor: Tensor, *args: Any, non_blocking: bool = False, **kwargs: Any) -> Tensor:
    """`tensor.to(...)` with the device among the arguments."""
    values = [each for each in args if not _names_device(each)]
    rest = {key: value for key, value in kwargs.items() if key != "device"}
    moved = tensor.to(*values, **rest) if values or rest else tensor
    if isinstance(tensor, DeviceTensor):
        return moved
    _copied(TO_DEVICE, "to", non_blocking)
    return DeviceTensor(moved.clone() if moved is tensor else moved)


def _listed(index: Any) -> Any:
    """A list of numbers as torch takes it for an index: as a tensor that is copied to the device."""
    if not isinstance(index, list):
        return index
    _copied(TO_DEVICE, "list as an index", False)
    return DeviceTensor(torch.tensor(index))


def _inner(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_meta and not isinstance(value, DeviceTensor):
        raise RuntimeError("torch made a tensor for the stand-in that has no values; teach `_Host` to make it")
    return value.inner if isinstance(value, DeviceTensor) else value


def _names_device(value: Any) -> bool:
    if isinstance(value, str):
        return value.startswith(DEVICE.type)
    return isinstance(value, torch.device) and value.type == DEVICE.type


def _copied(reason: str, name: str, non_blocking: bool) -> None:
    """A copy: the host waits for one from the device to be read, and for one to it unless told not to."""
    for log in _logs:
        log.kernels[f"copy ({name})"] += 1
        if reason == TO_HOST or not non_blocking:
            log.wait(reason, name)


def _waited(reason: str, name: str) -> None:
    for log in _logs:
        log.wait(reason, name)


def _computed(name: str) -> None:
    for log in _logs:
        log.kernels[name] += 1


def _note(func: Any, name: str, args: Any, kwargs: Any) -> None:
    """Writes to the logs whether the host waits for an operation, and whether the device computes it."""
    if name == "_to_copy":
        target = kwargs.get("device")
        if target is not None and torch.device(target).type == "cpu":
            return _copied(TO_HOST, name, False)
        if kwargs.get("dtype", args[0].dtype).itemsize > args[0].dtype.itemsize:
            for log in _logs:
                log.conversions.append(args[0].shape)
    if name == "copy_" and isinstance(args[0], DeviceTensor) != isinstance(args[1], DeviceTensor):
        to_host = isinstance(args[1], DeviceTensor)
        non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        return _copied(TO_HOST if to_host else TO_DEVICE, name, non_blocking)
    for reason in _reasons(name, args[1] if name in INDEXING else ()):
        _waited(reason, name)
    if func is torch.ops.aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
        _waited(SHAPE, name)
    if name not in FREE and not func.is_view:
        _computed(name)
    return None


def _reasons(name: str, indices: Any) -> Iterator[str]:
    """Why the host waits for an operation of some name, which has these indices if it takes any."""
    if name in READING:
        yield READS
    if name in SHAPED:
        yield SHAPE
    for index in indices:
        if isinstance(index, DeviceTensor):
            if index.dtype in (torch.bool, torch.uint8):
                yield MASK
        elif isinstance(index, (Tensor, list)):
            yield TO_DEVICE
