"""The tiny decoders of the methods' tests, to be merged."""

from tests.methods.conftest import decoder, one_thread  # noqa: F401 - fixtures
