"""Errors of the wire, split by whose fault they are."""


class WireError(Exception):
    """Root of all wire errors."""


class LocalWireError(WireError):
    """This program tried to send something the contract forbids: a bug here, raised at once."""


class RemoteWireError(WireError):
    """The peer sent something the contract forbids; `code` is the rejection reason to answer with."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
