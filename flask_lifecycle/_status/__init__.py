"""The status document and its page."""

from __future__ import annotations
