"""AI metering: pure bytes to usage, without I/O."""

from __future__ import annotations

from km_net_proxy.meter.decode import ACCEPT_ENCODING, new_decoder
from km_net_proxy.meter.offers import AnthropicMeter, OpenAIMeter, meters
from km_net_proxy.meter.whole import MAX_BODY

__all__ = ["ACCEPT_ENCODING", "MAX_BODY", "AnthropicMeter", "OpenAIMeter", "meters", "new_decoder"]
