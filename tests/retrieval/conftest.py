"""Settings of the property tests."""

from hypothesis import settings

# A busy machine is no failure. The tests of damaged photos set a limit of their own: a decoder must not hang.
settings.register_profile("sightfix", deadline=None)
settings.load_profile("sightfix")
