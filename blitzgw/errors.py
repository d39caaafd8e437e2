"""Every error that blitzgw raises on purpose, with whose fault it is and its HTTP status.

    BlitzError
    ├── ConfigError            operator   —    a configuration file or option that cannot be meant
    ├── CheckpointError        operator   500  a model that cannot be trusted or read
    ├── HostCopyError          operator   —    no room or no right to keep weights in shared memory
    ├── ProtocolError          peer       —    bytes from another process that are not a message
    ├── PeerLost               nobody     —    a node out of reach, or without what it was asked for
    ├── WorkerLost             nobody     502  a worker died while it held a request
    └── RequestError           client     4xx  below: what an HTTP client is told
        ├── InvalidRequest                400
        ├── Unauthorized                  401
        ├── UnknownModel                  404
        ├── TooLarge                      413
        ├── Overloaded                    429  capacity exists and is contended: try again
        ├── Unavailable                   503  no capacity now
        │   └── Outdated                       what it was meant for is not there, or not yet
        └── GenerationFailed              500  a bounded number of attempts has failed

Foreign errors (OSError, msgspec, torch) are translated at the boundary where they enter.
"""

from __future__ import annotations


class BlitzError(Exception):
    """The root: whoever catches it has caught everything that blitzgw says on purpose."""


class ConfigError(BlitzError):
    """A configuration that cannot be meant. `problems` holds one line per mistake."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class CheckpointError(BlitzError):
    """A checkpoint that is missing, truncated, inconsistent or of an unsupported kind."""


class HostCopyError(BlitzError):
    """A host copy that cannot be made, filled or mapped; the message says what would help."""


class ProtocolError(BlitzError):
    """Bytes from another process that do not form an expected message."""


class PeerLost(BlitzError):
    """A peer that cannot be reached, does not answer in time, or lacks what it was asked for."""


class WorkerLost(BlitzError):
    """A worker process ended, or its connection did."""


class RequestError(BlitzError):
    """What a client is told. `status` is the HTTP status, `kind` the `error.type` of the body."""

    status = 400
    kind = "BadRequestError"
    code = "bad_request"

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class InvalidRequest(RequestError):
    """A field that is missing, of the wrong type, out of range or not supported."""


class Unauthorized(RequestError):
    """No API key, or one that is not known here."""

    status = 401
    kind = "AuthenticationError"
    code = "unauthorized"


class UnknownModel(RequestError):
    """A model name that is neither configured nor an alias."""

    status = 404
    kind = "NotFoundError"
    code = "model_not_found"


class TooLarge(RequestError):
    """A body above the limit."""

    status = 413
    kind = "RequestTooLargeError"
    code = "body_too_large"


class Overloaded(RequestError):
    """Capacity is there and contended; `retry_after_s` says when to come back."""

    status = 429
    kind = "RateLimitError"
    code = "overloaded"


class Unavailable(RequestError):
    """No instance can take the request now; `retry_after_s` says when one will."""

    status = 503
    kind = "ServiceUnavailableError"
    code = "no_capacity"


class Outdated(Unavailable):
    """Meant for what an instance was before, or what it will be again: waiting for news helps.

    It says nothing of capacity; a router waits for what its view comes to know.
    """

    code = "stale"


class GenerationFailed(RequestError):
    """Every attempt to generate has failed; the request is answered with this."""

    status = 500
    kind = "InternalServerError"
    code = "generation_failed"
