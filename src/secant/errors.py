"""The errors that secant raises on purpose.

Holds: ``SecantError`` and its children; ``ListenerError``, which is none of them.
May import: nothing.

Every message has three parts: what was expected, what came, what to do.
"""


class SecantError(Exception):
    """Base of all errors that secant raises on purpose."""


class InputError(SecantError, ValueError):
    """What the caller passed cannot be used; the message says what to do."""


class LoadError(InputError):
    """A model or data file is missing, unreadable, unsafe or of the wrong form."""


class ControlError(InputError):
    """A control cannot be made for this model; the message says why."""


class StateError(SecantError):
    """The state of a run cannot be kept or read again; no fault of the model or the data."""


class UndecidedError(SecantError):
    """A question that no method here could settle for this data; no fault of the caller."""


class ListenerError(Exception):
    """Carries what failed in our own hooks out of a model's forward, so that nobody blames it.

    Only the context that set the hooks raises it and takes it apart again: what comes out of
    there is its `cause`.
    """

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause
