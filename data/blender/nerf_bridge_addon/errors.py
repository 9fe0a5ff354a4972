"""The one error that the add-on shows."""


class AddonError(Exception):
    """Something that the user can mend; its text is one line: what is wrong, what came, what to do."""
