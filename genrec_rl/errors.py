"""The errors a user can meet. Each message names the value, the limit and the remedy."""


class GenRecError(Exception):
    """Root of every error that genrec_rl raises on purpose."""


class ConfigError(GenRecError, ValueError):
    """A setting is unknown, of the wrong type, or contradicts another setting or a checkpoint."""


class DataError(GenRecError, ValueError):
    """A table, catalogue or checkpoint breaks its contract."""


class RewardError(GenRecError, ValueError):
    """A reward model or gate returned something that is not a reward."""


class RolloutError(GenRecError, RuntimeError):
    """Decoding or training reached a state that must not exist."""
