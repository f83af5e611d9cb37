"""What may go wrong when a variant is wanted, as the gateway tells it. Knows neither files nor transport.

BuilderFault
+-- PartMissing     a file of it is in no asset library: deleted since it was asked for
+-- PartUnfit       a part does not go over these weights
+-- NoDisk          there is no space for it: the same call may work later
+-- TooManyAtOnce   so many are being made that it would wait for long: likewise
+-- BuilderAway     the builder does not answer: the same call may work later
+-- BuildFailed     the builder failed; nothing the caller did
"""


class BuilderFault(Exception):
    """A variant cannot be had; the text says why."""


class PartMissing(BuilderFault):
    """A file that the variant is made of is not there."""


class PartUnfit(BuilderFault):
    """A file is there and does not fit the engine."""


class NoDisk(BuilderFault):
    """The disk, or what variants may take of it, is full."""

    retry_seconds = 60.0  # variants that requests hold must be let go first


class TooManyAtOnce(BuilderFault):
    """As many are being built or loaded as may wait for that."""

    retry_seconds = 10.0  # a small one is built in a second, a large one in half a minute


class BuilderAway(BuilderFault):
    """The builder ended, hangs, or was never there."""

    retry_seconds = 2.0  # it is back a second after its end


class BuildFailed(BuilderFault):
    """Something in the builder is broken."""
