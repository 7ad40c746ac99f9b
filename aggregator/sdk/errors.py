"""What the SDK raises."""


class FleetError(Exception):
    """The server refused, or there is none; the message is the server's own reason.

    `code` is stable, for programs (docs/api.md lists them): the server's, `unreachable` when nobody answers, `http`
    when what answers is no fedfleet server, `bad_model` or `bad_argument` when something here cannot be used, and
    `local` when a fleet on this machine cannot run. `status` is the HTTP status, None without an answer.
    """

    def __init__(self, code: str, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
