"""Errors that callers may want to catch by name."""


class BackendUnavailableError(RuntimeError):
    """The requested backend cannot serve this call on this machine.

    Raised for an explicit ``backend=`` (or ``SEDE_BACKEND``); the message lists each backend with
    the reason it is or is not available. An explicit request never falls back to another backend.
    """
