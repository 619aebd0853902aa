"""What the gateway answers when it can't answer: OpenAI's error shape, and who knows HTTP.

```
GatewayError            an answer: status, message, param, code, headers
RedisDown (fleet)       Redis does not answer; nobody's request fails for it
```
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    409: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
}


class GatewayError(Exception):
    """An error for the client, in OpenAI's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def detail(self) -> dict[str, Any]:
        """The value of ``error`` in the body."""
        return {
            "message": self.message,
            "type": _TYPES.get(self.status, "server_error"),
            "param": self.param,
            "code": self.code,
        }

    def response(self) -> Response:
        """The whole answer."""
        return Response(
            msgspec.json.encode({"error": self.detail}),
            self.status,
            self.headers,
            "application/json",
        )


def bad_field(param: str, problem: str, code: str | None = "invalid_value") -> GatewayError:
    """400: what is wrong with a field or header."""
    return GatewayError(400, f"{param}: {problem}", param=param, code=code)
