"""One step of training: forward and backward of one or several batches, then the optimiser."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

Batch = list[dict[str, Any]]


class TrainStep(SimpleTrainer):
    """detectron2's simple trainer with accumulation, mixed precision and a watch on the loss."""

    def __init__(
        self,
        model: nn.Module,
        data_loader: DataLoader,
        optimizer: torch.optim.Optimizer,
        *,
        precision: torch.dtype | None = None,
        accumulate_steps: int = 1,
    ) -> None:
        """Set up the steps.

        Args:
            model: from a batch to a dict of losses.
            data_loader: of batches whose samples tell their "position" and "file_name".
            optimizer: of the model's parameters.
            precision: of autocast, bfloat16 or float16 (with a gradient scaler); None for float32.
            accumulate_steps: batches whose gradients are averaged for one step.
        """
        super().__init__(model, data_loader, optimizer)
        self.precision = precision
        self.accumulate_steps = accumulate_steps
        self.device_type = next(model.parameters()).device.type
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=precision == torch.float16)
        self.next_position = 0  # in the data stream

    def run_step(self) -> None:
        """Take one step.

        Raises:
            FloatingPointError: if the loss or the gradients are not finite.
        """
        assert self.model.training, "The model was left in evaluation mode."
        data_time = 0.0
        means: dict[str, Tensor] = {}
        files: list[str] = []
        for step in range(self.accumulate_steps):
            start = time.perf_counter()
            batch = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            self.next_position = max(sample["position"] for sample in batch) + 1
            files += [sample["file_name"] for sample in batch]

            is_last = step == self.accumulate_steps - 1
            with self._gradients_shared(is_last):
                with torch.autocast(
                    self.device_type, dtype=self.precision, enabled=self.precision is not None
                ):
                    losses = self.model(batch)
                    loss = torch.stack(list(losses.values())).sum()
                if not torch.isfinite(loss):
                    self._stop(f"The loss is {loss.item()}", files)
                if step == 0:  # only now, so that a failure above can tell the last gradients
                    self.optimizer.zero_grad()
                self.scaler.scale(loss / self.accumulate_steps).backward()
            for name, value in losses.items():
                means[name] = means.get(name, 0) + value.detach() / self.accumulate_steps

        self._write_metrics(means, data_time)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._watch_gradients(files)

    def _gradients_shared(self, share: bool) -> Any:
        """Keep gradients on their rank until the last batch of a step."""
        if share or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def _watch_gradients(self, files: list[str]) -> None:
        norm = getattr(self.optimizer, "gradient_norm", None)
        if norm is None:
            return
        value = norm.item()
        get_event_storage().put_scalar("gradient_norm", value)
        if not math.isfinite(value):
            self._stop(f"The norm of the gradients is {value}", files)

    def _stop(self, what: str, files: list[str]) -> None:
        gradients = ", ".join(f"{name} {norm:.3g}" for name, norm in largest_gradients(self.model))
        raise FloatingPointError(
            f"{what} at iteration {self.iter}. Images of the batch: {', '.join(files)}. "
            f"Largest gradients of the last step: {gradients or 'none yet'}. "
            "A lower SOLVER.BASE_LR, or SOLVER.AMP.ENABLED False, may help."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimiser and of the gradient scaler."""
        return super().state_dict() | {"grad_scaler": self.scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; detectron2's checkpoints may lack the scaler."""
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):
            self.scaler.load_state_dict(state_dict["grad_scaler"])


def largest_gradients(model: nn.Module, count: int = 5) -> list[tuple[str, float]]:
    """Return names and norms of the largest gradients, those that are not numbers first."""
    norms = [
        (name, parameter.grad.norm().item())
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    ]
    norms.sort(key=lambda item: math.inf if math.isnan(item[1]) else item[1], reverse=True)
    return norms[:count]
