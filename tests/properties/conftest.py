"""Properties are tried on the same examples every time, few enough for a test suite."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "potstill",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("potstill")
