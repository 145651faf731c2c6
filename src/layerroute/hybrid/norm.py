"""RMS normalisation that is computed in fp32 whatever the dtypes of input and weight."""

import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467), with mixed dtypes allowed.

    Under autocast some inputs are half precision while the weight is not; torch's own then falls back to a slow path
    and warns. The result has the input's dtype.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return F.rms_norm(x.float(), self.normalized_shape, self.weight.float(), self.eps).to(x.dtype)
