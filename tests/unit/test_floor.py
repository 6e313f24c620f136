"""benchmarks/floor.py: what is counted as an operation, and the distance from the floor."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from floor import Phase, Rates, best, by_network, measured, operations

CPU = torch.device("cpu")


def test_operations_are_counted_exactly_forwards_and_backwards() -> None:
    """A multiplication and an addition are two. Fails if the CPU's attention is left out of the table."""
    a, b = torch.randn(5, 7, requires_grad=True), torch.randn(7, 11, requires_grad=True)
    forward = 2 * 5 * 7 * 11
    assert operations(lambda: a @ b) == forward
    assert operations(lambda: (a @ b).sum().backward()) == 3 * forward  # one product for each gradient
    image, kernel = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    assert operations(lambda: F.conv2d(image, kernel)) == 2 * 2 * 36 * 4 * 27
    q = torch.randn(2, 3, 9, 8, requires_grad=True)
    products = 2 * 2 * 3 * 9 * 9 * 8  # one of the two in attention
    assert operations(lambda: F.scaled_dot_product_attention(q, q, q)) == 2 * products
    both = operations(lambda: F.scaled_dot_product_attention(q, q, q).sum().backward())
    assert both == 2 * products + 5 * products  # the scores are computed again


def test_operations_by_network_add_up() -> None:
    """Fails if inner modules are counted beside the outer ones."""
    first, second = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), nn.Conv2d(1, 3, 3)

    def run() -> None:
        first(torch.randn(5, 4))
        second(torch.randn(2, 1, 5, 5))

    found = by_network(run)
    assert found == {"Sequential": 2 * 5 * (4 * 6 + 6 * 2), "Conv2d": 2 * 2 * 9 * 3 * 9}
    assert sum(found.values()) == operations(run)


def test_a_phase_stands_beside_its_larger_floor() -> None:
    """Fails if the smaller floor is taken, or bytes are divided by the matrix rate."""
    rates = Rates(matrix=1e9, memory=1e6)
    bound_by_arithmetic = Phase("a", 2 * 10**9, 1000, 6.0).row(rates)
    assert (bound_by_arithmetic["arithmetic floor"], bound_by_arithmetic["over floor"]) == (2.0, 3.0)
    bound_by_memory = Phase("b", 10**6, 4 * 10**6, 6.0).row(rates)
    assert (bound_by_memory["reading floor"], bound_by_memory["over floor"]) == (4.0, 1.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_product_is_near_its_floor(dtype: torch.dtype) -> None:
    """Within a factor of 8 on a busy machine. Fails if the rate counts a product once, or in milliseconds."""
    layer, x = nn.Linear(1024, 1024, bias=False).to(dtype), torch.randn(1024, 1024).to(dtype)
    rates = Rates.of(CPU, dtype, repeats=3)
    with torch.no_grad():
        phase = measured("a layer", lambda: layer(x), layer, CPU, repeats=5)
    assert phase.operations == 2 * 1024**3 and phase.weights == 1024**2 * layer.weight.element_size()
    assert 1 / 8 < phase.row(rates)["over floor"] < 8
    assert 1e8 < rates.memory < 1e12


def test_the_first_run_is_not_timed() -> None:
    calls: list[int] = []
    assert best(lambda: calls.append(1), CPU, 3) >= 0 and len(calls) == 4
