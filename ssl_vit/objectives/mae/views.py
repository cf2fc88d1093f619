"""Views of an image for MAE: one crop with random patches hidden."""

import numpy as np

from ssl_vit.objectives.masking import random_hidden
from ssl_vit.objectives.one_crop.views import OneCropViews


class MaeViews(OneCropViews):
    """Every set of hidden patches is equally likely (He et al. 2021, section 3, "Masking")."""

    def draw_hidden(self, rng: np.random.Generator) -> np.ndarray:
        """See :class:`OneCropViews`."""
        return random_hidden(self.grid[0] * self.grid[1], self.num_hidden, rng)
