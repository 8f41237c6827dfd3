"""The error of backbones and of their weights."""

from waver.tools.errors import WaverError


class BackboneError(WaverError):
    """The configured backbone, or its weights, cannot be used."""
