"""The lifecycle of a process: state, requests in flight, hooks, signals, shutdown and exit. Knows no server and no
Flask.
"""

from __future__ import annotations
