"""Sums over processes: a weight that none of them gives a gradient is left alone, as one process would."""

import torch
from torch import Tensor, nn

from promptloop.processes import Processes


class Beside:
    """Another process, which gives `flags` and then `gradients` to the sums."""

    process_index, num_processes, device = 0, 2, torch.device("cpu")

    def __init__(self, flags: list[float], gradients: list[float]) -> None:
        self.gives = [torch.tensor(flags), torch.tensor(gradients)]

    def reduce(self, value: Tensor, how: str) -> Tensor:
        assert how == "sum"
        return value + self.gives.pop(0)


def test_a_weight_without_a_gradient_anywhere_rests() -> None:
    """Fails when it is given zeros, on which momentum moves it, or where the other process's is lost."""
    own, others, nobodys = (nn.Parameter(torch.ones(1)) for _ in range(3))
    own.grad = torch.tensor([2.0])
    nobodys_state = torch.optim.AdamW([own, others, nobodys], lr=0.1)
    nobodys_state.state[nobodys] = {
        "step": torch.tensor(1.0), "exp_avg": torch.ones(1), "exp_avg_sq": torch.ones(1)
    }  # fmt: skip
    processes = Processes(Beside([1.0, 1.0, 0.0], [1.0, 5.0, 0.0]))
    processes.sum_gradients([own, others, nobodys], lambda: torch.zeros(()))
    assert own.grad is not None and others.grad is not None
    assert (own.grad.item(), others.grad.item(), nobodys.grad) == (3.0, 5.0, None)
    nobodys_state.step()
    assert nobodys.item() == 1 and own.item() < 1
