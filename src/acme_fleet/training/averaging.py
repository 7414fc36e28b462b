"""A moving average of the weights, which is what is evaluated and kept."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

_SHARE = 0.02  # of all steps, over which the weights are averaged


class Averaged(nn.Module):
    """A classifier in training mode, the moving average of its weights in evaluation mode.

    Statistics of normalisation layers are averaged like weights.
    """

    def __init__(self, module: nn.Module, horizon: int) -> None:
        """``horizon`` is the number of steps that the average remembers."""
        super().__init__()
        self.module = module
        average = get_ema_multi_avg_fn(1 - 1 / horizon)
        self.average = AveragedModel(module, multi_avg_fn=average, use_buffers=True)
        self.average.requires_grad_(False)

    @staticmethod
    def over(module: nn.Module, steps: int) -> Averaged:
        """An average that suits a training of so many steps."""
        return Averaged(module, max(2, round(_SHARE * steps)))

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits of shape ``(batch, classes)``."""
        return (self.module if self.training else self.average)(**inputs)

    def update(self) -> None:
        """Take the weights as they are into the average."""
        self.average.update_parameters(self.module)
