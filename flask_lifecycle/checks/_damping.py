"""When a result begins to count: after how many of its kind in a row."""

from __future__ import annotations


class Damper:
    """Turns the results of one check into what counts. Values in, values out; the caller holds a lock.

    The very first result counts at once: before it there is no good state that would deserve the benefit of the doubt.

    :param fail_after: so many failures in a row ...
    :param fail_for: ... and so many seconds since the first of them, before a check counts as failing.
    :param recover_after: so many good results in a row before it counts as well again.
    """

    def __init__(self, fail_after: int = 1, recover_after: int = 1, fail_for: float = 0.0) -> None:
        self.status = ""  # what counts; empty before the first result
        self.streak = 0  # how many results in a row have contradicted it
        self._fail_after = fail_after
        self._recover_after = recover_after
        self._fail_for = fail_for
        self._since = 0.0

    def feed(self, status: str, now: float, times: int = 1) -> str:
        """Take a result (a hang may count several times) and return what counts from now on."""
        failed, failing = status == "fail", self.status == "fail"
        if not self.status or failed == failing:
            self.status, self.streak = status, 0
            return self.status
        if not self.streak:
            self._since = now
        self.streak += times
        enough = self._fail_after if failed else self._recover_after
        if self.streak >= enough and (not failed or now - self._since >= self._fail_for):
            self.status, self.streak = status, 0
        return self.status
