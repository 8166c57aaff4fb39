"""What operators do to a running process: drain, cordon and uncordon, over HTTP or by files."""

from __future__ import annotations
