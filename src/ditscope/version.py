"""The version, in one place: the package, the wheel and the changelog check read it here."""

__version__ = "0.1.0"
