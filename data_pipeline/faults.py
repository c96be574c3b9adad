"""The two ways in which work ends early, told to a person in one line."""


class Fault(Exception):
    """What is wrong, where, and what to do: one line, for a person who did not write this code.

    Exit status 1: the call was right and the work failed.
    """

    exit_status = 1


class WrongCall(Fault):
    """The call, a file named in it or the configuration is wrong; nothing has been done.

    Exit status 2.
    """

    exit_status = 2


class Refused(Fault):
    """One scan cannot be used. The reason is kept beside its key, and the others go on."""
