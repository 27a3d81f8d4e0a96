"""The notifier keeps what every notifier promises."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from km_core.testing.notifier import NotifierContract

from km_notify_file import plugin as the_plugin

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType


class TestNotifier(NotifierContract):
    """The promises N1 to N9."""

    @pytest.fixture
    def plugin(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
        monkeypatch.setenv(the_plugin.VARIABLE, str(tmp_path / "events.jsonl"))
        return the_plugin
