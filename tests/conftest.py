"""What all tests share."""

from hypothesis import settings

# Other work on the machine must not fail a test.
settings.register_profile("enlarger", deadline=None)
settings.load_profile("enlarger")
