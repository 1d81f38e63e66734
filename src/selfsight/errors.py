"""The error a user can mend: one line that names the file or the flag."""


class SelfsightError(Exception):
    """A problem with the user's input.

    The message is one line, says what is wrong and with which file or flag, and what to do.
    The command line prints it without a traceback and exits with 1.
    """


class StoppedError(SelfsightError):
    """The user stopped a training with Ctrl-C; it can be continued."""
