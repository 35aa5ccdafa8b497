"""What holds for all tests."""

from hypothesis import settings

# A test's verdict must not depend on how busy the machine is; nor does any test measure time.
settings.register_profile("caspo", deadline=None)
settings.load_profile("caspo")
