"""The dtype in which matrix products are computed."""

import torch
from torch import Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """The autocast dtype where autocast is on for the tensor's device, else its own dtype."""
    device = x.device.type
    # meta has no autocast, and torch.amp.is_autocast_available cannot be compiled in torch 2.11.
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype
