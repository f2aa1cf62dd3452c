"""Error boundaries: they recognise what went wrong inside a run, and whom it concerns.

Errors are recognised by the names of their types and by their texts: the libraries that raise them may not be
installed, and several of them raise a plain RuntimeError.
"""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sae_sweep import logs
from sae_sweep.config import first_line
from sae_sweep.store import fault_line, log_traceback

_MEMORY_TYPES = ("MemoryError", "OutOfMemoryError")
"""Python's (numpy's and Arrow's are subclasses), and torch's for every kind of device."""
_MEMORY_TEXTS = (
    "out of memory",  # torch, the drivers of CUDA and HIP (also for pinned host memory), Triton
    "can't allocate memory",  # torch's allocator on a CPU; on other systems than Linux the next one
    "not enough memory",
    "cannot allocate memory",  # the system
    "bad_alloc",  # the C++ library
    "bad allocation",
    "alloc_failed",  # cuBLAS, cuSPARSE
    "allocation_failed",  # cuDNN
    "cudahostalloc",
    "cudaerrormemoryallocation",
)
_DEVICE_TEXTS = ("CUDA error", "HIP error", "Triton Error [CUDA]", "Triton Error [HIP]")
"""Beginnings of messages; torch's AcceleratorError is such an error too."""
_WAYS_OUT_OF_KERNELS = "set backend=reference, and report the traceback in train.log"


class GroupTooLargeError(RuntimeError):
    """Memory ran out with several members; all are saved and can continue in a smaller group."""


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the device or of the host (pinned memory included)."""
    if isinstance(error, GroupTooLargeError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if _is_a(error, *_MEMORY_TYPES):
        return True
    # another program's words (a config that names "out of memory") come in other types
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _MEMORY_TEXTS)


def device_failed(error: BaseException) -> bool:
    """Whether the device itself failed, so that later results in this process cannot be trusted."""
    if out_of_memory(error) or not isinstance(error, RuntimeError):
        return False
    return _is_a(error, "AcceleratorError") or str(error).startswith(_DEVICE_TEXTS)


def kernel_failed(error: BaseException) -> bool:
    """Whether Triton could not compile a kernel, or the GPU has too little of something to run it."""
    return any(base.__module__.partition(".")[0] == "triton" for base in type(error).__mro__)


def _is_a(error: BaseException, *names: str) -> bool:
    return any(base.__name__ in names for base in type(error).__mro__)


def explain(error: Exception, remedy: str) -> str:
    """Say in one line what went wrong; `remedy` is what helps if memory ran out."""
    if device_failed(error):
        cause = first_line(error)
        return f"the device failed ({cause}): the same command goes on from the last checkpoints"
    if out_of_memory(error):
        return f"memory ran out ({first_line(error)}): {remedy}"
    if kernel_failed(error):
        name = type(error).__name__
        return f"the kernels do not run on this GPU ({name}: {_last_line(error)}): {_WAYS_OUT_OF_KERNELS}"
    return fault_line(error)


def _last_line(error: Exception) -> str:
    """The last line of a compiler's message: the first ones show the place in the source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


@contextmanager
def border(name: str, fail: Callable[[str], None], *, remedy: str, together: bool) -> Iterator[None]:
    """Error boundary of a run: whatever goes wrong inside fails this run, and no other.

    Lines logged inside, and the traceback of an unexpected error, go to the run's own log.

    Args:
        name: the run.
        fail: called with one line that says what went wrong.
        remedy: what helps if memory ran out.
        together: whether other SAEs are in memory, so that a smaller group may have enough of it.

    Raises:
        GroupTooLargeError: if memory ran out, and `together`.
        RuntimeError: if the device failed, which concerns every run of this process.
    """
    with logs.only_for(name):
        try:
            yield
        except Exception as error:  # a stop is no Exception, and passes
            if device_failed(error):
                raise
            if together and out_of_memory(error):
                raise GroupTooLargeError(first_line(error)) from error
            log_traceback(error)
            fail(explain(error, remedy))
