"""A wrong argument is one line that names kernel and argument, in every backend and under `python -O`."""

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch

import sae_sweep.ops
from sae_sweep.ops import CSR, AdamUpdate, Estimates, SparsePattern, gather_columns
from tests.ops.helpers import REFERENCE, draw

ROWS, WIDTH, FEATURES, NNZ = 3, 4, 6, 5
OFFSETS = torch.tensor([0, 2, 2, 5])
INDICES = torch.tensor([0, 5, 1, 2, 3], dtype=torch.int32)
UPDATE = AdamUpdate(1e-3, (0.9, 0.99), 1e-8, 1)


@pytest.fixture(autouse=True)
def _without_jaxtyping():
    """Only in tests does it check shapes too."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def valid(device: str) -> dict[str, dict[str, Any]]:
    """Arguments of each kernel."""
    x, W, b = (draw(*shape, device=device) for shape in ((ROWS, WIDTH), (FEATURES, WIDTH), (FEATURES,)))
    csr = CSR(OFFSETS.to(device), INDICES.to(device), FEATURES)
    return {
        "normalise": {"x": x, "eps": 1e-5},
        "encode_topk": {"x": x, "W": W, "b": b, "k": 2},
        "encode_above": {"x": x, "W": W, "b": b, "floors": b, "max_nnz": 100},
        "encode_dead_topk": {"x": x, "W": W, "b": b, "k": 2, "estimates": None},
        "topk": {"z": x, "k": 2},
        "transpose": {"csr": csr},
        "spmm": {"csr": csr, "values": draw(NNZ, device=device), "dense": W},
        "sddmm": {"csr": csr, "left": x, "right": W},
        "adam": {"weights": W, "gradient": W, "moments": (W.abs(), W.abs()), "update": UPDATE},
    }


def wrong_tensors(tensor: torch.Tensor) -> list[Any]:
    """Yield what differs from a tensor in size, dimension, dtype, layout, device or kind."""
    wider = torch.cat([tensor, tensor], dim=-1)
    return [
        wider[..., : tensor.shape[-1] + 1].contiguous(),
        tensor[..., :-1].contiguous(),
        tensor.unsqueeze(0),
        tensor.int(),
        tensor.half(),
        wider[..., ::2],
        tensor.to("meta"),
        tensor.tolist(),
    ]


FIRST = {"x", "z", "weights", "left", "values"}
"""Arguments with which others must agree."""
FLOATS = [
    ("normalise", "x"),
    *(("encode_topk", name) for name in ("x", "W", "b")),
    *(("encode_above", name) for name in ("x", "W", "b", "floors")),
    *(("encode_dead_topk", name) for name in ("x", "W", "b")),
    *(("spmm", name) for name in ("values", "dense")),
    *(("sddmm", name) for name in ("left", "right")),
    *(("adam", name) for name in ("weights", "gradient")),
]


@pytest.mark.parametrize(("kernel", "name"), FLOATS)
def test_wrong_tensors(backend, kernel: str, name: str):
    arguments = valid(backend.device)[kernel]
    for number, wrong in enumerate(wrong_tensors(arguments[name])):
        if number < 2 and (kernel in ("normalise", "topk") or name == "dense"):
            continue  # any width will do
        if backend.name == "reference" and number in (4, 6) and name in FIRST:
            continue  # the first argument sets the dtype and device
        blamed = r"\w+" if name in FIRST or number < 2 else name
        with pytest.raises(ValueError, match=rf"^kernel {kernel}: {blamed} is .*, and must be .*$"):
            getattr(backend.kernels, kernel)(**arguments | {name: wrong})


@pytest.mark.parametrize(
    ("kernel", "name", "wrong"),
    [
        *(("encode_topk", "k", wrong) for wrong in (0, -1, FEATURES + 1, 2**62, 1.5, None)),
        *(("encode_dead_topk", "k", wrong) for wrong in (0, FEATURES + 1)),
        *(("topk", "k", wrong) for wrong in (0, WIDTH + 1)),
        *(("encode_above", "max_nnz", wrong) for wrong in (-1, 0.5)),
        ("adam", "step", 0),
        ("adam", "unit_rows", "sometimes"),
    ],
)
def test_wrong_numbers(backend, kernel: str, name: str, wrong: Any):
    arguments = valid(backend.device)[kernel]
    change = {"update": UPDATE._replace(**{name: wrong})} if kernel == "adam" else {name: wrong}
    with pytest.raises(
        ValueError, match=rf"^kernel {kernel}: {name} is {re.escape(repr(wrong))}, and must be "
    ):
        getattr(backend.kernels, kernel)(**arguments | change)


def test_wrong_moments_and_scales(backend):
    arguments = valid(backend.device)["adam"]
    W = arguments["weights"]
    for number in range(2):
        moments = [W, W]
        moments[number] = W[:-1]
        with pytest.raises(ValueError, match=rf"^kernel adam: moments\[{number}\] is float32 \[5, 4\]"):
            backend.kernels.adam(**arguments | {"moments": tuple(moments)})
    scale = UPDATE._replace(gradient_scale=W[0])
    with pytest.raises(ValueError, match=r"^kernel adam: gradient_scale is float32 \[4\]"):
        backend.kernels.adam(**arguments | {"update": scale})


@pytest.mark.parametrize("wrong", [[-1], [FEATURES], [0, 2**40]])
def test_dead_candidates_that_are_no_features(backend, wrong: list[int]):
    if not backend.kernels.leaves_estimates:
        return
    arguments = valid(backend.device)["encode_topk"]
    with pytest.raises(
        ValueError, match=r"^kernel encode_topk: dead_candidates holds numbers from .* 0 to 5$"
    ):
        backend.kernels.encode_topk(**arguments, dead_candidates=torch.tensor(wrong))
    with pytest.raises(ValueError, match=r"^kernel encode_topk: dead_candidates is int32 "):
        backend.kernels.encode_topk(**arguments, dead_candidates=torch.tensor([1], dtype=torch.int32))


@pytest.mark.parametrize(
    "wrong",
    [
        {"values": draw(ROWS + 1, FEATURES)},
        {"columns": torch.arange(FEATURES)},
        {"columns": torch.arange(1, FEATURES + 1, dtype=torch.int32)},
        {"columns": torch.arange(FEATURES - 1, dtype=torch.int32)},
        {"error_per_norm": torch.zeros(ROWS + 1)},
        {"norm_bounds": torch.zeros(FEATURES - 1)},
    ],
)
def test_wrong_estimates(backend, wrong: dict[str, torch.Tensor]):
    good = Estimates(
        draw(ROWS, FEATURES),
        torch.arange(FEATURES, dtype=torch.int32),
        torch.zeros(ROWS),
        torch.zeros(FEATURES),
    )
    estimates = Estimates(*(tensor.to(backend.device) for tensor in good._replace(**wrong)))
    arguments = valid(backend.device)["encode_dead_topk"] | {"estimates": estimates}
    with pytest.raises(ValueError, match=rf"^kernel encode_dead_topk: estimates\.{next(iter(wrong))} "):
        backend.kernels.encode_dead_topk(**arguments)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"offsets": torch.tensor([0, 3, 2, 5])}, "offsets are not in order"),
        ({"offsets": torch.tensor([0, 2, 2, 6])}, "offsets are not in order"),
        ({"offsets": torch.tensor([1, 2, 2, 5])}, "offsets are not in order"),
        ({"offsets": torch.tensor([0, -(2**62), 2, 5])}, "offsets are not in order"),
        ({"offsets": OFFSETS.int()}, "offsets is int32"),
        ({"offsets": OFFSETS[:0]}, "rows is -1"),
        ({"indices": INDICES - 1}, "indices holds numbers from -1 to 4"),
        ({"indices": INDICES.long()}, "indices is int64"),
        ({"indices": INDICES.view(1, -1)}, r"indices is int32 \[1, 5\]"),
        ({"columns": 5}, "indices holds numbers from 0 to 5, and must be 0 to 4"),
        ({"columns": -1}, "columns is -1"),
        ({"columns": 2**31}, "columns is 2147483648"),
        ({"indices": INDICES.to("meta")}, "indices is on meta"),
    ],
)
def test_wrong_patterns(change: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=f"^kernel CSR: {said}"):
        CSR(**{"offsets": OFFSETS, "indices": INDICES, "columns": FEATURES} | change)


def test_patterns_on_another_device(backend):
    csr = CSR(OFFSETS.to("meta"), INDICES.to("meta"), FEATURES, from_kernel=True)
    arguments = valid(backend.device)
    for kernel in ("spmm", "sddmm"):
        with pytest.raises(ValueError, match=rf"^kernel {kernel}: \w+ is .*on (meta|cpu|cuda:0)"):
            getattr(backend.kernels, kernel)(**arguments[kernel] | {"csr": csr})


def test_wrong_patterns_of_functions():
    csr = CSR(OFFSETS, INDICES, FEATURES)
    some = SparsePattern(REFERENCE, csr, torch.arange(FEATURES))
    for pattern, numbers in ((some, draw(FEATURES)), (SparsePattern(REFERENCE, csr), draw(FEATURES + 1))):
        with pytest.raises(ValueError, match=r"gather_columns: by_feature is \[\d\], and must"):
            gather_columns(pattern, numbers)
    with pytest.raises(ValueError, match="the first pattern must be one over all features"):
        some.add_to(None, draw(FEATURES))


def test_checks_do_not_rest_on_assert():
    """They would be gone under `python -O`."""
    for path in Path(sae_sweep.ops.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)], path


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_numbers_that_are_not_finite_stay_inside(backend):
    """In every argument: none makes a kernel read or write elsewhere."""
    specials = (torch.nan, torch.inf, -torch.inf, 3e38, 1e-45)
    for special in specials[: backend.few(5, 1)]:
        for kernel, arguments in valid(backend.device).items():
            for name, value in arguments.items():
                if isinstance(value, torch.Tensor):
                    filled = arguments | {name: value.clone().fill_(special)}
                    for encoded in results(lambda k=kernel, a=filled: getattr(backend.kernels, k)(**a)):
                        assert 0 <= int(encoded.min()) <= int(encoded.max()) < FEATURES


def results(call: Callable[[], Any]) -> list[torch.Tensor]:
    """The indices that a kernel returned."""
    found = call()
    indices = (
        [found.csr.indices] if hasattr(found, "csr") else [*found][:1] if isinstance(found, tuple) else []
    )
    return [each for each in indices if each.numel() and each.dtype is torch.int32]
