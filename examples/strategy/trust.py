"""A strategy of one's own: distrust every step a little, and stale updates a lot.

Names itself in the entry-point group `fedfleet.strategies` (pyproject.toml beside it); after `pip install` of this
folder where the server runs, a job says `"strategy": "trust"`.
"""

import numpy as np

from aggregator.strategy import Strategy


class Trust(Strategy):
    """Half weight per version of delay; the step is bounded to twice the mean size of the steps before it."""

    defaults = {"buffer_size": 8, "staleness_max": 10}

    def weight(self, tau):
        """s(τ) = 2^-τ."""
        return 0.5**tau

    def step(self, mean, slots, delay):
        """The mean update, cut down where its norm is far above what is usual; slots keep the usual."""
        del delay  # `weight` has seen to it
        norm = float(np.linalg.norm(mean))
        usual = float(slots["usual"][0]) if slots else norm
        scale = min(1.0, 2 * usual / norm) if norm > 0 else 1.0
        kept = np.full_like(mean, np.float32(0.9 * usual + 0.1 * norm))
        return self.spec.server_lr * scale * mean, {"usual": kept}
