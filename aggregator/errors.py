"""Errors of the aggregator, split by whose fault they are."""


class AggregatorError(Exception):
    """Root of all errors of the aggregator."""


class RefusedError(AggregatorError):
    """A person asked for something that cannot be done; `code` is stable, the message says what to change."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class NotFoundError(RefusedError):
    """There is no such job, version, bundle or device."""

    def __init__(self, message: str) -> None:
        super().__init__("not_found", message)


class CorruptStateError(AggregatorError):
    """Stored state does not have the digest or form it must have; nothing was changed."""


class StrategyError(AggregatorError):
    """A strategy gave numbers that no model can be made of; the version before stays the newest."""
