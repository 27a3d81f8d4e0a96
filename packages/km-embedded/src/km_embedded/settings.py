"""kmd's own timings, from the environment where a test needs them shorter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from km_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping


@frozen
class Settings:
    """
    Timings in seconds.

    Attributes:
        idle_exit_s: kmd ends after this long without sandboxes and clients (``KM_KMD_IDLE_S``).
        tick_s: pause between two ticks (``KM_KMD_TICK_S``).
        pod_grace_s: how long a supervisor's lock must be free before the supervisor counts as dead
            (``KM_KMD_POD_GRACE_S``); it covers the moment between its end and its record's update.
        checkpoint_s: time between two checkpoints of a sandbox (``KM_KMD_CHECKPOINT_S``).
        reservation_check_s: time between two looks for stale reservations.
        task_timeout_s: how long an expiry or a recovery may run.
        create_retry_s: age at which a sandbox whose creating process has died is removed.
        destroy_retry_s: age of an unfinished destroy that nobody works on any more.
    """

    idle_exit_s: float = 60.0
    tick_s: float = 1.0
    pod_grace_s: float = 3.0
    checkpoint_s: float = 60.0
    reservation_check_s: float = 5.0
    task_timeout_s: float = 900.0
    create_retry_s: float = 60.0
    destroy_retry_s: float = 300.0

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """
        Read the settings.

        Raises:
            ConfigError: a variable is no positive number.
        """
        names = {
            "idle_exit_s": "KM_KMD_IDLE_S",
            "tick_s": "KM_KMD_TICK_S",
            "pod_grace_s": "KM_KMD_POD_GRACE_S",
            "checkpoint_s": "KM_KMD_CHECKPOINT_S",
        }
        values = {}
        for field, name in names.items():
            if text := env.get(name):
                try:
                    value = float(text)
                except ValueError:
                    value = -1.0
                if not 0 < value < 86400 * 365:
                    raise ConfigError(f"{name} must be a number of seconds above 0, not {text[:32]!r}")
                values[field] = value
        return cls(**values)
