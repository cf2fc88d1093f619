"""The first rank's alarms: said once, and kept in the run folder."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ssl_vit.foreign import typed_lines
from ssl_vit.monitors.collapse import Alarm
from ssl_vit.training.metrics_file import AppendedLines, lines_of


class AlarmFile:
    """`alarms.jsonl` of a run folder.

    Args:
        file: Created with the first alarm; those of updates that will be made again are cut off.
        start_step: Updates already made.
    """

    def __init__(self, file: Path, start_step: int) -> None:
        self._lines = AppendedLines(file, start_step)

    def write(self, alarms: Sequence[Alarm]) -> None:
        """Append them."""
        self._lines.write(asdict(alarm) for alarm in alarms)

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def read_alarms(file: Path) -> list[Alarm]:
    """Those of a run, oldest first; a line that a kill cut short is left out."""
    return list(typed_lines(Alarm, lines_of(file)))


def in_words(alarm: Alarm) -> str:
    """For a person: what was seen, and what usually cures it."""
    return (
        f"ALARM at update {alarm.step:,}: {alarm.symptom}: {alarm.evidence}\n"
        f"      what usually cures it: {alarm.remedy}"
    )
