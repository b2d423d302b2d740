"""What can go wrong in the lab."""


class LabError(Exception):
    """A lab command failed or did not answer in time; the message carries its output."""


class NotOursError(LabError):
    """Somebody asked the lab to touch an interface or a setting that the lab did not make."""
