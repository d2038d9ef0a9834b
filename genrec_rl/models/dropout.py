"""Dropout that is cheap on CPUs, where one random number an element takes a seventh of a small model's step."""

import torch
from torch import Tensor, nn


class ByteDropout(nn.Dropout):
    """``nn.Dropout`` with one random byte an element on a CPU, where p is rounded to a multiple of 1/256."""

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements in training, and scale the others so that the expectation stays."""
        dropped = round(self.p * 256)
        if not self.training or x.device.type != "cpu" or dropped in (0, 256):
            return super().forward(x)
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
        return x * kept.to(x.dtype).mul_(256 / (256 - dropped))
