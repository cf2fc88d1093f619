"""Measures the newest features every few steps, and raises alarms."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ssl_vit.monitors.collapse import Alarm, CollapseWatch
from ssl_vit.monitors.config import MonitorConfig
from ssl_vit.monitors.measures import alpha_req, rankme, spread, usage
from ssl_vit.objectives.objective import Observed


class Ring:
    """The newest rows of a stream of micro-batches.

    Args:
        size: Number of rows kept.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.seen = 0
        self._rows: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Add (b, …) rows; copied, so that they keep nothing else alive."""
        rows = rows[-self.size :]
        if self._rows is None:
            self._rows = rows.new_empty(self.size, *rows.shape[1:])
        places = (torch.arange(len(rows), device=rows.device) + self.seen) % self.size
        self._rows[places] = rows
        self.seen += len(rows)

    @property
    def rows(self) -> Tensor:
        """(N, …) rows; N is at most the size."""
        assert self._rows is not None, "nothing was added yet"
        return self._rows[: self.seen]


class Monitor:
    """The first rank's monitoring of collapse.

    Args:
        config: How often features are measured, and how many.
        watch: Decides on alarms.
    """

    def __init__(self, config: MonitorConfig, watch: CollapseWatch) -> None:
        self.config, self.watch = config, watch
        self._features, self._codes = Ring(config.buffer), Ring(config.buffer)
        self._num_codes = 0

    def look(
        self, step: int, observed: Sequence[Observed], metrics: Mapping[str, float]
    ) -> tuple[dict[str, float], list[Alarm]]:
        """Add a step's features; every few steps, measure them.

        Args:
            step: The step, from 0.
            observed: Features of its micro-batches on this rank.
            metrics: The objective's metrics of the step.

        Returns:
            Measures by name, and new alarms; both empty at steps without a measurement.
        """
        for each in observed:
            self._features.add(each.features)
            if each.codes is not None:
                self._codes.add(each.codes)
                self._num_codes = each.num_codes
        if (step + 1) % self.config.every_steps or not self._features.seen:
            return {}, []
        # On the CPU: a GPU is no faster at the eigenvalues of a few hundred rows, and waiting for
        # it would cost time.
        features = self._features.rows.float().cpu()
        if not torch.isfinite(features).all():
            return {}, []  # the guard against non-finite losses reports them
        measures = {
            "monitor/rankme": rankme(features),
            "monitor/alpha_req": alpha_req(features),
            "monitor/spread": spread(features),
        }
        if self._codes.seen:
            measures["monitor/code_usage"] = usage(self._codes.rows, self._num_codes)
        judged = {**metrics, **measures}
        if self._features.seen < self.config.buffer:
            # After a restart too: with few rows it is small, and the run's peak is remembered.
            del judged["monitor/rankme"]
        return measures, self.watch.judge(step + 1, judged)
