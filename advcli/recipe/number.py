"""Numbers as people type them in this field: `8/255`, `1e-3`, `0.1`. The text is kept, so that a receipt says 8/255 and not 0.0313."""

from __future__ import annotations

import math
import re
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import PydanticCustomError, core_schema

_DECIMAL = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_FORM = re.compile(rf"\s*({_DECIMAL})\s*(?:/\s*({_DECIMAL})\s*)?")


def parse_number(value: object) -> Number:
    """A Number from an int, a float, or text such as `1e-3` or `8/255`; ValueError with the reason otherwise."""
    if isinstance(value, Number):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"expected a number such as 0.1, 1e-3 or 8/255, got {value!r}")
    if isinstance(value, str):
        match = _FORM.fullmatch(value)
        if match is None:
            raise ValueError(f"expected a number such as 0.1, 1e-3 or 8/255, got {value!r}")
        numerator, denominator = float(match[1]), float(match[2] or 1)
        if denominator == 0:
            raise ValueError(f"{value!r} divides by zero")
        result = numerator / denominator
    else:
        try:
            result = float(value)
        except OverflowError:
            result = math.inf
    if not math.isfinite(result):
        raise ValueError(f"expected a finite number, got {value!r}")
    return Number(result, value.strip() if isinstance(value, str) else repr(value))


class Number(float):
    """A float that remembers how it was typed (`text`)."""

    text: str

    def __new__(cls, value: float, text: str | None = None) -> Number:
        self = super().__new__(cls, value)
        self.text = repr(float(value)) if text is None else text
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (Number, (float(self), self.text))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        def validate(value: object) -> Number:
            try:
                return parse_number(value)
            except ValueError as error:
                raise PydanticCustomError("number", "{reason}", {"reason": str(error)}) from None

        return core_schema.no_info_plain_validator_function(validate, serialization=core_schema.plain_serializer_function_ser_schema(plain))

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "number"}, {"type": "string", "pattern": f"^{_DECIMAL}(/{_DECIMAL})?$"}]}


def plain(value: Number) -> int | float | str:
    """What YAML and JSON hold: the fraction as text, anything else as a plain number."""
    if "/" in value.text:
        return value.text
    number = float(value)
    return int(number) if number.is_integer() and "." not in value.text and "e" not in value.text.lower() else number
