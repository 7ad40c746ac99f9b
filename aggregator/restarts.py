"""When a process that died is started again: at once after a long life, later and later after short ones. Pure."""

from dataclasses import dataclass

HEALTHY_S = 10.0  # a process that lived this long died of something else than its start
PAUSE_S_MIN = 0.2  # after the first short life; doubles up to PAUSE_S_MAX
PAUSE_S_MAX = 10.0
HOPELESS = 3  # short lives in a row after which a person is shown the end of the log


@dataclass(slots=True)
class Restarts:
    """The deaths of one process; times are in seconds of a monotonic clock."""

    short_lives: int = 0
    due_at: float = 0.0

    @property
    def hopeless(self) -> bool:
        """It died as soon as it was started, again and again."""
        return self.short_lives >= HOPELESS

    def died(self, lived_s: float, now: float) -> None:
        """Count a death after a life of `lived_s`; a start that failed is a life of 0."""
        self.short_lives = 0 if lived_s >= HEALTHY_S else self.short_lives + 1
        pause = PAUSE_S_MIN * 2 ** min(self.short_lives - 1, 16) if self.short_lives else 0.0
        self.due_at = now + min(pause, PAUSE_S_MAX)
