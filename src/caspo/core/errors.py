"""Every error that caspo raises on purpose.

Each message says what happened, why, and what to do next.

    CaspoError
    ├── ConfigError        a recipe, an option or a combination of options makes no sense
    │   └── ResumeError    the run folder was made with another configuration
    ├── DataError          a file or a record is missing, truncated or malformed
    ├── ModelError         a model cannot be found, loaded or used for this
    ├── EngineError        generation failed: bad logits, prompt longer than the context
    └── StorageError       the disk refused: full, read-only, no permission

A user's mistake raises one of these; a broken invariant of ours is an ``assert``.
"""

__all__ = ["CaspoError", "ConfigError", "DataError", "EngineError", "ModelError", "ResumeError", "StorageError"]


class CaspoError(Exception):
    """Base of all errors raised on purpose; the command line prints it without a traceback."""


class ConfigError(CaspoError):
    """A recipe, an option or a combination of options makes no sense."""


class ResumeError(ConfigError):
    """The run folder was made with another configuration; the message names the keys that differ."""


class DataError(CaspoError):
    """A file or a record is missing, truncated or malformed."""


class ModelError(CaspoError):
    """A model cannot be found, loaded or used for what was asked."""


class EngineError(CaspoError):
    """Generation failed: logits with NaN or inf, a prompt longer than the context."""


class StorageError(CaspoError):
    """The disk refused: full, read-only, no permission."""
