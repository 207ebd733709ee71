"""The one JSON object of --json."""

from __future__ import annotations

import json
import sys
from typing import Any


def print_json(value: Any) -> None:
    plain = not sys.stdout.encoding.lower().startswith("utf")
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=plain, allow_nan=False) + "\n")
