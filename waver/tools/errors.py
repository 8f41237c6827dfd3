"""Which errors are told to the user as a sentence."""


def raised_by_waver(error: BaseException) -> bool:
    """Whether waver's own code raised it, which then says what to do; not a library that waver called.

    Args:
        error: as it was caught, in the process that raised it.
    """
    traceback = error.__traceback__
    while traceback.tb_next:
        traceback = traceback.tb_next
    return traceback.tb_frame.f_globals.get("__name__", "").partition(".")[0] == "waver"
